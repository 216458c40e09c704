"""trainer.compute.devices: a machine that lacks its GPUs does not train."""

import pytest
import torch

from trainer.compute.devices import check_devices
from trainer.contract.errors import MissingGpus
from trainer.contract.spec import Cluster


@pytest.mark.parametrize(("declared", "seen"), [(0, 0), (0, 1), (2, 2), (2, 8)])
def test_check_devices_where_all_declared_gpus_are_there_accepts(
    declared: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    check_devices(Cluster(processes=max(1, declared), gpus=declared))


@pytest.mark.parametrize(("seen", "chosen"), [(0, None), (1, "0,7")])
def test_check_devices_where_gpus_are_missing_says_how_many(
    seen: int, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    with pytest.raises(MissingGpus) as caught:
        check_devices(Cluster(processes=2, gpus=2))
    among = "" if chosen is None else f" among CUDA_VISIBLE_DEVICES={chosen}"
    assert str(caught.value).startswith(f"GPUs: this machine was declared with 2, torch sees {seen}{among}, and no ")
    assert "\n" not in str(caught.value)
