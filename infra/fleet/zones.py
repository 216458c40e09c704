"""List the zones that have CPU machines and GPUs, by region.

Sources: SkyPilot's catalog (skypilot-org/skypilot-catalog, gcp/vms.csv, early 2026) for A100, H100, H200 and B200; a
public copy of Google's page "GPU regions and zones" of 2026-02-05 (stewartpark/private-llm, cli) for L4 and RTX PRO
6000; that page and Google's GKE samples for T4, but for us-east4, where no source was found. Zones change:
`scripts.preflight` asks Google about each of them.
"""

# All zones of the regions that have known GPUs; N1, E2, N2 and N2D machines are in nearly all of them.
REGIONS: dict[str, str] = {
    "asia-east1": "abc",
    "asia-southeast1": "abc",
    "europe-west1": "bcd",
    "europe-west4": "abc",
    "us-central1": "abcf",
    "us-east1": "bcd",
    "us-east4": "abc",
    "us-west1": "abc",
}
# For each GPU model, the letters of its zones in those regions. A region that is not named has none.
GPU_ZONES: dict[str, dict[str, str]] = {
    "nvidia-tesla-t4": {
        "asia-east1": "ac",
        "asia-southeast1": "abc",
        "europe-west1": "bcd",
        "europe-west4": "abc",
        "us-central1": "abcf",
        "us-east1": "cd",
        "us-east4": "abc",
        "us-west1": "ab",
    },
    "nvidia-l4": {
        "asia-east1": "abc",
        "asia-southeast1": "abc",
        "europe-west1": "bc",
        "europe-west4": "abc",
        "us-central1": "abc",
        "us-east1": "bcd",
        "us-east4": "ac",
        "us-west1": "abc",
    },
    "nvidia-tesla-a100": {
        "asia-southeast1": "abc",
        "europe-west4": "ab",
        "us-central1": "abcf",
        "us-east1": "b",
        "us-west1": "b",
    },
    "nvidia-a100-80gb": {"asia-southeast1": "c", "europe-west4": "a", "us-central1": "ac", "us-east4": "c"},
    "nvidia-h100-80gb": {
        "asia-east1": "c",
        "asia-southeast1": "bc",
        "europe-west1": "bc",
        "europe-west4": "bc",
        "us-central1": "abc",
        "us-east4": "abc",
        "us-west1": "ab",
    },
    "nvidia-h100-mega-80gb": {
        "asia-east1": "c",
        "asia-southeast1": "bc",
        "europe-west1": "bc",
        "europe-west4": "bc",
        "us-central1": "abc",
        "us-east4": "abc",
        "us-west1": "ab",
    },
    "nvidia-h200-141gb": {
        "europe-west1": "b",
        "europe-west4": "a",
        "us-central1": "b",
        "us-east4": "b",
        "us-west1": "c",
    },
    "nvidia-b200": {"asia-southeast1": "b", "europe-west4": "b", "us-central1": "b", "us-east1": "b", "us-east4": "b"},
    "nvidia-rtx-pro-6000": {
        "asia-southeast1": "bc",
        "europe-west1": "c",
        "europe-west4": "abc",
        "us-central1": "bf",
        "us-east1": "b",
        "us-east4": "c",
        "us-west1": "bc",
    },
}
