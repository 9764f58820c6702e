"""The catalogue of devices: every number sourced, CPUs' rates derived, names found."""

from __future__ import annotations

import json

import pytest

from latentkv.errors import OptionError
from latentkv.planner.devices import DEVICES_FILE, PRECISIONS, device_names, find_device


def test_every_device_has_a_source_and_possible_numbers() -> None:
    for name in device_names():
        device = find_device(name)
        assert device.source.title
        assert device.source.address or device.source.kind == "secondary"
        assert device.source.checked_at or "not read again" in device.note
        assert 5e10 <= device.bandwidth_bytes_s <= 1e13
        known = [device.rate(precision) for precision in PRECISIONS if device.rate(precision) is not None]
        assert known == sorted(known), "a narrower precision is never slower"
        assert known or "states no rates" in device.note
        assert (device.memory_bytes is not None) or device.kind == "cpu"


def test_names_in_the_file_are_unique() -> None:
    names = [record["name"] for record in json.loads(DEVICES_FILE.read_text("utf-8"))]
    assert len(names) == len(set(names)) == len(device_names())


def test_a_cpus_numbers_are_products_of_its_facts() -> None:
    genoa = find_device("EPYC 9654")
    assert genoa.bandwidth_bytes_s == 460.8e9  # AMD's own figure for 12 channels of DDR5-4800
    assert genoa.rate("fp32") == 96 * 2.4e9 * 32
    xeon = find_device("8480+")
    assert xeon.rate("bf16") == 16 * xeon.rate("fp32")


def test_ridges_of_the_h800_are_those_that_flashmla_counts_with() -> None:
    assert find_device("H800").ridge("bf16") == pytest.approx(295, abs=1)


@pytest.mark.parametrize(
    ("text", "name"), [("h200", "NVIDIA H200 SXM"), ("rtx-4090", "NVIDIA GeForce RTX 4090"), ("mi300x", None)]
)
def test_a_part_of_a_name_finds_it(text: str, name: str | None) -> None:
    assert find_device(text).name == (name or "AMD Instinct MI300X")


def test_unknown_and_ambiguous_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="NVIDIA H100 SXM or NVIDIA H100 PCIe"):
        find_device("H100")
    with pytest.raises(OptionError, match="device: expected"):
        find_device("H101")
    with pytest.raises(OptionError, match="precision"):
        find_device("H200").rate("fp4")


def test_what_apple_does_not_publish_is_unknown() -> None:
    assert find_device("M4 Max").ridge("fp32") is None
