"""scripts.refresh_prices against pages of Google's billing catalog, in the shape of its discovery document.

Descriptions and prices are those that public copies of the catalog show for us-central1.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts import refresh_prices
from scripts.refresh_prices import BOOK, load
from scripts.support.skus import COMPUTE, STORAGE, Skus, rate
from tests.scripts.google import Call, FakeGoogle, Json

AMERICAS = ["us-central1", "us-east1", "us-west1"]
SPOT = " attached to Spot Preemptible VMs"
TODAY = datetime.now(UTC).date()
SMALL = """\
# The head of the file.
sources:
  # A word about it.
  old: {date: 2026-01-02, what: "an older list"}
  pages: {date: 2026-01-03, what: "pricing pages"}
  by-hand: {date: 2026-01-04, what: "a price of another cloud"}
egress_gb: {price: 0.12, source: pages} # to the internet
scheduler_job_month: {price: 0.1, source: pages}
regions:
  us-central1:
    n1_vcpu: {on_demand: 0.03, spot: 0.01, source: old}
    n1_memory_gb: {on_demand: 0.004237, spot: 0.0014, source: old}
    n2d_vcpu: {on_demand: 0.02, spot: unknown, source: old}
    accelerators: # attached, one
      nvidia-tesla-t4: {on_demand: 0.35, spot: 0.175, source: old}
    machines: # whole
      a2-ultragpu-1g: {on_demand: unknown, spot: unknown, source: old}
      a3-megagpu-8g: {on_demand: 93, spot: unknown, source: old}
      g4-standard-96: {on_demand: unknown, spot: unknown, source: old}
      a4-highgpu-8g: {on_demand: unknown, spot: unknown, source: old}
    disk_gb_month: {price: 0.1, source: old}
    hyperdisk_gb_month: {price: 0.09, source: old}
    storage_gb_month: {price: 0.02, source: old} # Standard
elsewhere:
  AWS: {region: us-east-1, source: pages, machines: {m5: {on_demand: 1, spot: unknown, source: by-hand}}}
"""


def sku(description: str, usd: float, unit: str = "h", usage: str = "OnDemand", free: float = 0) -> Json:
    """Return a SKU of the Americas; `free`: the units a month without cost."""
    money = {"currencyCode": "USD", "units": str(int(usd)), "nanos": round(usd % 1 * 1e9)}
    tiers: list[Json] = [{"startUsageAmount": free, "unitPrice": money}]
    if free:
        nothing = {"currencyCode": "USD", "units": "0", "nanos": 0}
        tiers.insert(0, {"startUsageAmount": 0, "unitPrice": nothing})
    number = f"{abs(hash(description)) % 10**8:08d}"
    return {
        "name": f"{COMPUTE}/skus/{number}",
        "skuId": number,
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": "Compute",
            "resourceGroup": "CPU",
            "usageType": usage,
        },
        "serviceRegions": AMERICAS,
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {"usageUnit": unit, "displayQuantity": 1, "tieredRates": tiers},
                "currencyConversionRate": 1,
                "effectiveTime": "2026-11-23T10:50:40.206Z",
            }
        ],
        "serviceProviderName": "Google",
    }


def machine_skus() -> list[Json]:
    """Return the SKUs that the small book needs, with similar ones that must not be taken for them."""
    return [
        sku("N1 Predefined Instance Core running in Americas", 0.031611),
        sku("Spot Preemptible N1 Predefined Instance Core running in Americas", 0.00882, usage="Preemptible"),
        sku("N1 Predefined Instance Ram running in Americas", 0.004237, "GiBy.h"),
        sku("Spot Preemptible N1 Predefined Instance Ram running in Americas", 0.00113, "GiBy.h", "Preemptible"),
        sku("N1 Sole Tenancy Instance Core running in Americas", 0.031611),
        sku("Sole Tenancy Premium for N1 Predefined Instance Core running in Americas", 0.0031611),
        sku("Custom Instance Core running in Americas", 0.033174),
        sku("Commitment v1: Cpu in Americas for 1 Year", 0.019915, usage="Commit1Yr"),
        sku("Nvidia Tesla T4 GPU running in Americas", 0.35),
        sku(f"Nvidia Tesla T4 GPU{SPOT} running in Americas", 0.14, usage="Preemptible"),
        sku("Commitment v1: Nvidia Tesla T4 GPU running in Americas for 1 Year", 0.22, usage="Commit1Yr"),
        sku("Reserved Nvidia Tesla T4 GPU running in Americas", 0.36),
        sku("A2 Instance Core running in Americas", 0.031611),
        sku("Spot Preemptible A2 Instance Core running in Americas", 0.0126, usage="Preemptible"),
        sku("Reserved A2 Instance Core in Americas", 0.0316),
        sku("A2 Instance Ram running in Americas", 0.004237, "GiBy.h"),
        sku("Spot Preemptible A2 Instance Ram running in Americas", 0.0017, "GiBy.h", "Preemptible"),
        sku("Nvidia Tesla A100 GPU running in Americas", 2.933908),
        sku("Nvidia Tesla A100 80GB GPU running in Americas", 3.92808),
        sku(f"Nvidia Tesla A100 80GB GPU{SPOT} running in Americas", 1.964, usage="Preemptible"),
        sku("Nvidia Tesla A100 80GB GPU attached to DWS Defined Duration VMs running in Americas", 1.8462),
        sku("N2D AMD Instance Core running in Americas", 0.027502),
        sku("N2D AMD Custom Instance Core running in Americas", 0.028877),
        sku("G4 Instance Core running in Americas", 0.0225),
        sku("G4 Instance Ram running in Americas", 0.003, "GiBy.h"),
        sku("RTX 6000 96GB running in Americas", 2.88),
        sku("Commitment v1: RTX 6000 96GB running in Americas for 1 Year", 2.1, usage="Commit1Yr"),
        sku("Spot Preemptible A4 Nvidia B200 (1 gpu slice) running in Americas", 5.5, usage="Preemptible"),
        sku("DWS Calendar Mode A4 Nvidia B200 (1 gpu slice) running in Americas", 8.06),
        sku("SSD backed Local Storage", 0.08, "GiBy.mo"),
        sku(f"SSD backed Local Storage{SPOT}", 0.04, "GiBy.mo"),  # Google, too, gives it the usageType OnDemand
        sku("C4 Instance Local SSD running in Americas", 0.09, "GiBy.mo"),
        sku("A3Plus Instance Core running in Americas", 0.026924),
        sku("A3Plus Instance Ram running in Americas", 0.002344, "GiBy.h"),
        sku("A3 Instance Core running in Americas", 0.0255),
        sku("Nvidia H100 80GB GPU running in Americas", 9.796550569),
        sku("Nvidia H100 80GB Plus GPU running in Americas", 10.344275712),
        sku("Nvidia H100 Mega 80GB GPU attached to DWS Defined Duration VMs running in Americas", 4.1),
        sku("Reserved Nvidia H100 80GB Mega GPU in Americas in Calendar Mode", 4.841121),
        sku("Balanced PD Capacity", 0.1, "GiBy.mo"),
        sku("Regional Balanced PD Capacity", 0.2, "GiBy.mo"),
        sku("Network Vpn Internet Egress from Americas to Africa", 0.12, "GiBy"),
    ]


def storage_skus() -> list[Json]:
    return [
        sku("Standard Storage US Regional", 0.02, "GiBy.mo", free=5),
        sku("Standard Storage Nam4 Dual-region", 0.036, "GiBy.mo"),
        sku("Regional Standard Class A Operations", 0.005, "count"),
        sku("Nearline Storage US Regional", 0.01, "GiBy.mo"),
    ]


@pytest.fixture
def catalog(google: FakeGoogle) -> dict[str, list[Json]]:
    """Return the SKUs with which Google answers, in pages of ten."""
    skus = {COMPUTE: machine_skus(), STORAGE: storage_skus()}

    def listing(service: str) -> Callable[[Call], Json]:
        def page(call: Call) -> Json:
            assert call.query["currencyCode"] == ["USD"]
            start = int(call.query.get("pageToken", ["0"])[0])
            more = {"nextPageToken": str(start + 10)} if start + 10 < len(skus[service]) else {"nextPageToken": ""}
            return {"skus": skus[service][start : start + 10], **more}

        return page

    for service in skus:
        google.on("cloudbilling", "GET", re.escape(f"{service}/skus"), listing(service))
    return skus


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "prices.yaml"
    path.write_text(SMALL)
    return path


def region(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = load(path.read_text())[1]["regions"]["us-central1"]
    return found


def test_refresh_renews_prices_with_source_and_date_and_keeps_comments(
    catalog: dict[str, list[Json]], book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refresh_prices.main([], book) == 1  # the Hyperdisk is missing in the catalog
    here, new = region(book), f"google-{TODAY}"
    assert dict(here["n1_vcpu"]) == {"on_demand": 0.031611, "spot": 0.00882, "source": new}
    assert dict(here["accelerators"]["nvidia-tesla-t4"]) == {"on_demand": 0.35, "spot": 0.14, "source": new}
    ssd = 375 / 730
    ultra = here["machines"]["a2-ultragpu-1g"]
    assert ultra["on_demand"] == pytest.approx(12 * 0.031611 + 170 * 0.004237 + 3.92808 + ssd * 0.08, abs=1e-6)
    assert ultra["spot"] == pytest.approx(12 * 0.0126 + 170 * 0.0017 + 1.964 + ssd * 0.04, abs=1e-6)
    mega = here["machines"]["a3-megagpu-8g"]
    by_hand = 208 * 0.026924 + 1872 * 0.002344 + 8 * 10.344275712 + 8 * 2 * ssd * 0.08
    assert mega["on_demand"] == pytest.approx(by_hand, abs=1e-6)
    assert mega["spot"] == "unknown"  # without a SKU there is no price
    assert dict(here["n2d_vcpu"]) == {"on_demand": 0.027502, "spot": "unknown", "source": new}
    assert here["machines"]["g4-standard-96"]["on_demand"] == pytest.approx(96 * 0.0225 + 360 * 0.003 + 2 * 2.88)
    assert dict(here["machines"]["a4-highgpu-8g"]) == {"on_demand": "unknown", "spot": 44, "source": new}
    assert (here["disk_gb_month"]["price"], here["storage_gb_month"]["price"]) == (0.1, 0.02)
    text = book.read_text()
    assert text.startswith("# The head of the file.\n")
    for comment in ("# A word about it.", "# attached, one", "# whole", "# Standard", "# to the internet"):
        assert comment in text
    assert f"{new}: {{date: {TODAY}, what: " in text
    out = capsys.readouterr().out
    assert re.search(r"us-central1 n1_vcpu on_demand +0\.03 +0\.031611 +\+5\.4%", out)
    assert "19 prices: " in out


def test_entry_missing_in_the_catalog_keeps_its_price_and_source(catalog: dict[str, list[Json]], book: Path) -> None:
    refresh_prices.main([], book)
    assert dict(region(book)["hyperdisk_gb_month"]) == {"price": 0.09, "source": "old"}
    assert "old" in load(book.read_text())[1]["sources"]


def test_source_without_entries_is_removed(catalog: dict[str, list[Json]], book: Path) -> None:
    catalog[COMPUTE] += [
        sku("Hyperdisk Balanced Capacity in Iowa", 0.08, "GiBy.mo"),
        sku("Hyperdisk Balanced High Availability Capacity in Iowa", 0.16, "GiBy.mo"),
    ]
    assert refresh_prices.main([], book) == 0
    assert set(load(book.read_text())[1]["sources"]) == {"pages", "by-hand", f"google-{TODAY}"}


@pytest.mark.parametrize(("usd", "factor"), [(0.15, "0.43"), (0.75, "2.1")])
def test_jump_of_a_price_is_written_only_with_accept(
    catalog: dict[str, list[Json]], book: Path, capsys: pytest.CaptureFixture[str], usd: float, factor: str
) -> None:
    catalog[COMPUTE] = [s for s in machine_skus() if s["description"] != "Nvidia Tesla T4 GPU running in Americas"]
    catalog[COMPUTE].append(sku("Nvidia Tesla T4 GPU running in Americas", usd))
    assert refresh_prices.main([], book) == 1
    assert dict(region(book)["accelerators"]["nvidia-tesla-t4"]) == {"on_demand": 0.35, "spot": 0.175, "source": "old"}
    shown = " ".join(capsys.readouterr().out.split())
    assert f"kept: on_demand is {factor} times as much; --accept takes it" in shown
    refresh_prices.main(["--accept"], book)
    assert region(book)["accelerators"]["nvidia-tesla-t4"]["on_demand"] == usd


def test_spot_price_above_the_one_on_demand_is_never_written(catalog: dict[str, list[Json]], book: Path) -> None:
    catalog[COMPUTE] = [s for s in machine_skus() if not s["description"].startswith(f"Nvidia Tesla T4 GPU{SPOT}")]
    catalog[COMPUTE].append(sku(f"Nvidia Tesla T4 GPU{SPOT} running in Americas", 0.36, usage="Preemptible"))
    assert refresh_prices.main(["--accept"], book) == 1
    assert region(book)["accelerators"]["nvidia-tesla-t4"]["spot"] == 0.175


def test_two_prices_for_one_entry_keep_the_old_one(
    catalog: dict[str, list[Json]], book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog[COMPUTE].append(sku("N1 Predefined Instance Core running in Iowa", 0.05))
    assert refresh_prices.main([], book) == 1
    assert region(book)["n1_vcpu"]["source"] == "old"
    assert "note: us-central1: the SKUs called 'N1 Predefined Instance Core' cost 0.031611 and 0.05" in (
        capsys.readouterr().out
    )


def test_refusal_of_google_is_one_line_and_keeps_the_book(google: FakeGoogle, book: Path) -> None:
    google.deny("cloudbilling", message="Cloud Billing API has not been used in project 123456 before")
    with pytest.raises(refresh_prices.ApiError, match="has not been used in project"):
        refresh_prices.main([], book)
    assert book.read_text() == SMALL


def test_committed_book_is_unchanged_by_a_refresh_without_skus(google: FakeGoogle, tmp_path: Path) -> None:
    """With an empty catalog not a byte of it changes."""
    google.on("cloudbilling", "GET", "services/.*/skus", {"skus": []})
    path = tmp_path / "prices.yaml"
    path.write_text(BOOK.read_text())
    refresh_prices.main([], path)
    assert path.read_text() == BOOK.read_text()


def test_committed_book_has_skus_for_every_entry() -> None:
    """Otherwise a refresh would keep an entry for ever."""
    keys = {key for name in load(BOOK.read_text())[1]["regions"] for key, _ in Skus().prices(name)}
    for at, entry in refresh_prices.entries(load(BOOK.read_text())[1]):
        assert {(*at, kind) for kind in ("on_demand", "spot", "price") if kind in entry} <= keys


def test_rate_is_units_and_nanos_of_the_first_tier_with_a_price() -> None:
    assert rate(sku("x", 12.25)) == ("h", 12.25)
    assert rate(sku("x", 0.02, "GiBy.mo", free=5)) == ("GiBy.mo", 0.02)
    assert rate(sku("x", 0)) is None
    assert rate({"description": "x", "pricingInfo": []}) is None
