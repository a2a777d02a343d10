"""Safetensors on disk: stamped with their checksum, and refused where a byte changed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from uatmc_dist.checksums import check_stamp
from uatmc_dist.models.files import Pieces, write_pieces, write_safetensors


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    file = tmp_path_factory.mktemp("files") / "x.safetensors"
    tensors = {"b": torch.arange(7, dtype=torch.float32).reshape(7, 1), "a": torch.ones(3, dtype=torch.float16)}
    write_safetensors(file, tensors, {"score": "dot product"})
    return file


def test_what_was_written_is_read(written):
    assert check_stamp(written)
    with safe_open(written, framework="pt") as file:
        assert file.metadata()["score"] == "dot product" and len(file.metadata()["xxh3"]) == 16
        assert file.get_tensor("b").flatten().tolist() == list(range(7))


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_changed_bit_is_found_but_in_the_name_of_the_stamp(written, share, bit):
    content = bytearray(written.read_bytes())
    place = int(share * len(content))
    name = content.find(b'"xxh3":"')
    content[place] ^= 1 << bit
    changed = written.with_name("changed.safetensors")
    changed.unlink(missing_ok=True)
    changed.write_bytes(content)
    assert check_stamp(changed) == (name <= place < name + 8 or place == name + 24)


@pytest.mark.parametrize("rows", [0, 1, 4, 9])
def test_pieces_make_the_file_that_the_whole_makes(tmp_path, rows):
    whole, bias = torch.randn(rows, 3), torch.randn(5)
    pieces = Pieces(rows, 3, lambda: iter(whole.split(4) if rows else ()))
    write_pieces(tmp_path / "x.safetensors", {"rows": pieces, "bias": bias}, {"score": "dot product"})
    assert check_stamp(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata()["score"] == "dot product"
        assert torch.equal(file.get_tensor("rows"), whole) and torch.equal(file.get_tensor("bias"), bias)


def test_a_file_without_a_stamp_passes(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors")
    assert check_stamp(tmp_path / "old.safetensors")
