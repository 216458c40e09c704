"""The rules as a policy pack, with the real CLI and the language host that tools/ builds, on a Google stack."""

import re
import subprocess

import pytest

from tests.google_cloud.conftest import CHECKOUT, StandIn, cloud

__all__ = ["cloud"]
PACK = CHECKOUT / "policy"


@pytest.mark.slow
def test_cli_stops_a_preview_that_breaks_a_rule(cloud: StandIn) -> None:
    subprocess.run([CHECKOUT / "tools" / "setup_policy"], check=True)
    preview = ("preview", "--policy-pack", str(PACK))
    said = cloud.pulumi(*preview, stack="single")
    assert "✅ gpt2-training@v1.0.0" in said, said
    # This is the expected cost.
    assert re.search(r"estimatedCostUsd: \{\s+high: 0\.\d+\s+low : 0\.\d+\s+\}\s", said), said
    assert re.search(r"hourlyCostUsd +: 0\.79\s", said), said

    network = cloud.root / "infra" / "google" / "network.py"
    program = network.read_text()
    assert "source_ranges=[IAP]" in program
    network.write_text(program.replace("source_ranges=[IAP]", 'source_ranges=["0.0.0.0/0"]'))
    said = cloud.pulumi(*preview, stack="single", ok=False)
    assert "no-open-firewall" in said, said
    assert "[mandatory]" in said, said
    assert "lets 0.0.0.0/0 in; name the ranges that need it" in said, said
    assert "Traceback" not in said, said
