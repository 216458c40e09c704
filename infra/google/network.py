"""Give a run its own network: machines reach each other and Google's services, and only IAP's tunnels reach them."""

import pulumi
from pulumi_gcp import compute

from infra.google.identity import Identity
from infra.stack.config import StackConfig

RANGE = "10.10.0.0/20"  # 4,092 machines
MTU = 8896  # bytes: the largest frames that Google's networks carry between machines, for fewer packets an exchange
IAP = "35.235.240.0/20"  # the addresses of Identity-Aware Proxy's tunnels


class Network(pulumi.ComponentResource):
    """A network with one subnet and two firewall rules; with network.nat also a router and Cloud NAT."""

    subnetwork: pulumi.Output[str]  # its id

    def __init__(self, config: StackConfig, identity: Identity, opts: pulumi.ResourceOptions):
        super().__init__("gpt2-training:google:Network", "network", {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        name = f"gpt2-{config.stack}"
        network = compute.Network("network", name=name, auto_create_subnetworks=False, mtu=MTU, opts=child)
        subnetwork = compute.Subnetwork(
            "subnetwork",
            name=name,
            network=network.id,
            region=config.region,
            ip_cidr_range=RANGE,
            private_ip_google_access=True,  # storage, registry, logging and monitoring without a public address
            opts=child,
        )
        machines = [account.email for account in identity.machines.values()]
        compute.Firewall(
            "internal",
            name=f"{name}-internal",
            network=network.id,
            direction="INGRESS",
            source_service_accounts=machines,
            target_service_accounts=machines,
            allows=[{"protocol": "tcp"}],  # the Lighthouse, stores and collectives choose their ports
            opts=child,
        )
        compute.Firewall(
            "ssh",
            name=f"{name}-ssh",
            network=network.id,
            direction="INGRESS",
            source_ranges=[IAP],
            target_service_accounts=machines,
            allows=[{"protocol": "tcp", "ports": ["22"]}],
            opts=child,
        )
        if config.file.network.nat:
            router = compute.Router("router", name=name, network=network.id, region=config.region, opts=child)
            compute.RouterNat(
                "nat",
                name=name,
                router=router.name,
                region=config.region,
                source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
                nat_ip_allocate_option="AUTO_ONLY",
                opts=child,
            )
        self.subnetwork = subnetwork.id
        self.register_outputs({"subnetwork": self.subnetwork})
