"""Pieces of a long computation: found again only where everything they are made from is the same."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from anodiff.engine.pieces import Pieces, module_digest


def count(made: list[int], value: float) -> dict[str, Tensor]:
    made.append(1)
    return {"a": torch.tensor([value, 2.0], dtype=torch.float64), "b": torch.tensor(3)}


def test_a_piece_is_made_once_for_its_inputs_kind_and_identity(tmp_path: Path) -> None:
    made: list[int] = []
    x = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    first = Pieces(tmp_path / "in" / "kept", {"seed": 0}).get("errors", [x], lambda: count(made, 1.5))
    again = Pieces(tmp_path / "in" / "kept", {"seed": 0}).get("errors", [x], lambda: count(made, 9.0))
    assert len(made) == 1
    assert again["a"].dtype == torch.float64
    assert all(torch.equal(again[name], first[name]) for name in ("a", "b"))
    others = [("errors", x.reshape(3, 2), 0), ("errors", x + 1, 0), ("scores", x, 0), ("errors", x, 1)]
    for number, (kind, inputs, seed) in enumerate(others, 2):
        Pieces(tmp_path / "in" / "kept", {"seed": seed}).get(kind, [inputs], lambda: count(made, 1.0))
        assert len(made) == number
    Pieces(tmp_path / "in" / "kept").remove()
    assert not (tmp_path / "in").exists()


def test_a_damaged_piece_is_made_again_and_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    made: list[int] = []
    x = torch.zeros(2)
    Pieces(tmp_path / "kept").get("errors", [x], lambda: count(made, 1.0))
    (path,) = (tmp_path / "kept").iterdir()
    for content in (path.read_bytes()[:40], b"", b"not an archive"):
        path.write_bytes(content)
        assert float(Pieces(tmp_path / "kept").get("errors", [x], lambda: count(made, 1.0))["a"][0]) == 1
    assert len(made) == 4
    for _ in range(2):
        Pieces().get("errors", [x], lambda: count(made, 1.0))
    assert len(made) == 6
    (tmp_path / "beside").write_text("of someone else")
    Pieces(tmp_path / "kept").remove()
    assert [each.name for each in tmp_path.iterdir()] == ["beside"]


def test_the_digest_of_a_module_is_of_its_weights() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert module_digest(one) != module_digest(other)
    other.load_state_dict(one.state_dict())
    assert module_digest(one) == module_digest(other)
    assert module_digest(nn.Identity()) == module_digest(nn.Identity())
