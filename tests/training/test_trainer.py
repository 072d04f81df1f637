"""Training by law: resuming, processes and accumulation change nothing; EMA and augmentation do what they say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anodiff.anomaly import AnomalyDetector
from anodiff.config import AugmentConfig, parse_config
from anodiff.errors import TrainingError
from anodiff.training import Trainer, load_checkpoint, save_checkpoint
from anodiff.training.augment import NUMBERS, augment
from anodiff.training.ema import EMA
from anodiff.training.processes import Processes
from anodiff.training.trainer import LogRow


def images(n: int = 24, size: int = 16) -> torch.Tensor:
    """Smooth blobs of varying place: something a network can learn."""
    generator = torch.Generator().manual_seed(5)
    centre = torch.rand(n, 2, 1, 1, generator=generator) * size
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2
    return (2 * torch.exp(-distance / 20) - 1)[:, None].float()


def trainer(recipe: dict[str, Any], **training: Any) -> Trainer:
    recipe = {**recipe, "training": {**recipe["training"], **training}}
    return Trainer(parse_config(recipe), images(), images(8), device=torch.device("cpu"), precision="fp32")


def weights(trained: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trained.averaged.network.parameters()])


def run(trained: Trainer, stop_at: int | None = None) -> list[LogRow]:
    rows: list[LogRow] = []
    trained.run(
        on_log=rows.append,
        on_validation=lambda _: None,
        on_tick=lambda _: None,
        should_stop=lambda: stop_at is not None and trained.state.images_seen >= stop_at,
    )
    return rows


def test_loss_falls_and_validation_agrees(tiny_recipe: dict[str, Any]) -> None:
    trained = trainer(tiny_recipe, images=1600, lr=3e-3)
    before = trained.validate()
    rows = run(trained)
    assert rows[-1].loss < 0.5 * rows[0].loss
    assert trained.validate() < 0.5 * before


def test_resumed_run_repeats_an_uninterrupted_one(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = trainer(tiny_recipe, images=240)
    rows = run(whole)
    first = trainer(tiny_recipe, images=240)
    run(first, stop_at=80)
    assert first.state.images_seen == 80
    save_checkpoint(first, tmp_path / "checkpoint.pt")
    second = trainer(tiny_recipe, images=240)
    load_checkpoint(second, tmp_path / "checkpoint.pt")
    run(second)
    assert [row.loss for row in second.state.log] == [row.loss for row in rows]
    assert torch.equal(weights(whole), weights(second))


def test_accumulating_equals_one_large_batch(tiny_recipe: dict[str, Any]) -> None:
    large, parts = trainer(tiny_recipe, batch_size=8), trainer(tiny_recipe, batch_size=4, accumulate=2)
    losses = [(float(large.step()), float(parts.step())) for _ in range(4)]
    for a, b in losses:
        assert a == pytest.approx(b, rel=1e-4)


def test_another_recipe_is_not_continued(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(trainer(tiny_recipe), tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match=r"training\.lr: 0\.001 -> 0\.002"):
        load_checkpoint(trainer(tiny_recipe, lr=2e-3), tmp_path / "checkpoint.pt")


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    good = trainer(tiny_recipe)
    good.step()
    save_checkpoint(good, path)
    before = path.read_bytes()
    for module in (good.averaged.network, good.network):
        parameter = next(module.parameters())
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] = float("nan")
        with pytest.raises(
            TrainingError, match="expected finite weights, found weights that are not finite; try --set"
        ):
            save_checkpoint(good, path)
        with torch.no_grad():
            parameter.copy_(kept)
    assert path.read_bytes() == before
    load_checkpoint(trainer(tiny_recipe), path)


def test_an_update_that_breaks_the_weights_is_noticed_before_anything_is_written(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that of before the update, so the last one of a round could break the weights unseen."""
    broken = trainer(tiny_recipe, images=240)
    step = broken.step

    def last_one_breaks() -> torch.Tensor:
        loss = step()
        if broken.state.images_seen == 80:
            with torch.no_grad():
                next(broken.network.parameters()).fill_(float("inf"))
        return loss

    monkeypatch.setattr(broken, "step", last_one_breaks)
    written: list[Any] = []
    with pytest.raises(TrainingError, match="expected finite weights"):
        broken.run(
            on_log=written.append, on_validation=written.append, on_tick=written.append, should_stop=lambda: False
        )
    assert written == []


def test_another_precision_is_not_continued_and_the_way_on_is_named(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(trainer(tiny_recipe), path)
    config = parse_config(tiny_recipe)
    other = Trainer(config, images(), images(8), device=torch.device("cpu"), precision="bf16")
    with pytest.raises(
        TrainingError, match="expected to go on in fp32, found bf16; add --precision fp32, or start anew"
    ):
        load_checkpoint(other, path)
    assert load_checkpoint(trainer(tiny_recipe), path) == ()


def test_other_processes_go_on_where_an_update_sees_the_same_images(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(trainer(tiny_recipe, batch_size=8), path)

    def of_two(recipe: dict[str, Any], batch_size: int) -> Trainer:
        recipe = {**recipe, "training": {**recipe["training"], "batch_size": batch_size}}
        return Trainer(
            parse_config(recipe), images(), images(8),
            device=torch.device("cpu"), precision="fp32", processes=Processes(0, 2),
        )  # fmt: skip

    (note,) = load_checkpoint(of_two(tiny_recipe, 4), path)
    assert note.startswith("goes on with 2 processes (before: 1) and the same 8 images an update")
    with pytest.raises(TrainingError, match=r"expected updates of 8 images \(1 process\), found 16 \(2\)"):
        load_checkpoint(of_two(tiny_recipe, 8), path)
    with pytest.raises(TrainingError, match="expected updates of 8 images"):
        load_checkpoint(trainer(tiny_recipe, batch_size=4), path)
    assert load_checkpoint(trainer(tiny_recipe, batch_size=4, accumulate=2), path)
    dropping = {**tiny_recipe, "network": {**tiny_recipe["network"], "dropout": 0.1}}
    save_checkpoint(trainer(dropping, batch_size=8), path)
    with pytest.raises(TrainingError, match="dropout"):
        load_checkpoint(of_two(dropping, 4), path)


def test_a_checkpoint_that_does_not_record_the_machine_goes_on(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(trainer(tiny_recipe), path)
    content = torch.load(path, weights_only=True)
    del content["precision"], content["processes"]
    torch.save(content, path)
    assert load_checkpoint(trainer(tiny_recipe), path) == ()
    with pytest.raises(TrainingError, match="expected updates of 8 images"):
        load_checkpoint(trainer(tiny_recipe, batch_size=4), path)


def test_a_checkpoint_older_than_a_key_of_the_recipe_goes_on(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(trainer(tiny_recipe), path)
    content = torch.load(path, weights_only=True)
    del content["config"]["diffusion"]["noise_where"], content["config"]["diffusion"]["sigma"]["value"]
    torch.save(content, path)
    load_checkpoint(trainer(tiny_recipe), path)
    changed = {**tiny_recipe, "diffusion": {**tiny_recipe["diffusion"], "noise_where": "foreground"}}
    with pytest.raises(TrainingError, match=r"noise_where: all -> foreground"):
        load_checkpoint(trainer(changed), path)


def test_a_denoising_auto_encoder_learns_to_leave_bumps_out(tiny_recipe: dict[str, Any]) -> None:
    """Coarse noise of one level in training; scored by one call on the clean image, preset dae."""
    diffusion = {
        "prediction": "x0", "noise": "coarse", "noise_scale": "published", "noise_where": "foreground",
        "sigma": {"kind": "fixed", "value": 0.4}, "weight": "x0",
    }  # fmt: skip
    trained = trainer({**tiny_recipe, "diffusion": diffusion, "augment": {}}, images=800, lr=3e-3)
    seen: list[torch.Tensor] = []
    hook = trained.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trained.step()
    hook.remove()
    rows, _, _ = trained._plan(0)
    clean = trained.examples.images[trained._pick(rows)]
    scale = (1 + 0.4**2) ** 0.5
    difference = (seen[0] * scale - clean).abs()
    assert float(difference[clean < -0.95].max()) < 1e-5
    assert float(difference[clean > -0.85].max()) > 0.3
    run(trained)
    model = SimpleNamespace(config=trained.config, denoiser=trained.averaged, calibrations={})
    detector = AnomalyDetector(model, "dae", device="cpu", precision="fp32")
    bumps = torch.zeros(8, 1, 16, 16)
    bumps[:, :, 6:11, 6:11] = 0.8
    found, before = (detector.reconstruct(x)[0] for x in (images(8) + bumps, images(8)))
    assert detector.settings.nfe == 1
    assert float((found - before)[bumps > 0].mean()) < 0.7 * 0.8


def test_damaged_checkpoint_is_named(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(trainer(tiny_recipe), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: expected a training checkpoint"):
        load_checkpoint(trainer(tiny_recipe), path)


def test_non_finite_loss_stops_with_advice(tiny_recipe: dict[str, Any]) -> None:
    broken = trainer(tiny_recipe, images=1600)
    broken.examples.images = broken.examples.images.clone()
    broken.examples.images[3, 0, 2, 2] = float("nan")
    with pytest.raises(TrainingError, match=r"expected a finite loss, found nan; try --set training\.lr="):
        run(broken)


def test_learning_rate_warms_up_then_falls(tiny_recipe: dict[str, Any]) -> None:
    trained = trainer(tiny_recipe, images=1000, warmup_images=100, lr=1.0)
    rates = [trained.learning_rate(seen) for seen in range(0, 1001, 8)]
    top = int(np.argmax(rates))
    assert 88 <= top * 8 <= 104
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(0.01)


def test_every_epoch_shows_every_image_once(tiny_recipe: dict[str, Any]) -> None:
    trained = trainer(tiny_recipe)
    trained.examples.images = torch.arange(24).float().view(24, 1, 1, 1)
    shown = torch.cat([trained._pick(torch.arange(start, start + 8)) for start in range(0, 48, 8)]).flatten()
    assert sorted(shown[:24].tolist()) == list(range(24))
    assert sorted(shown[24:].tolist()) == list(range(24))
    assert not torch.equal(shown[:24], shown[24:])


def test_ema_is_the_average_it_says(tiny_recipe: dict[str, Any]) -> None:
    source, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    ema = EMA(source, target, halflife=100.0, rampup=0.0)
    start = target.weight.clone()
    with torch.no_grad():
        source.weight.add_(1.0)
    ema.update(batch=100, images_seen=100)
    torch.testing.assert_close(target.weight, (start + source.weight) / 2)
    assert EMA(source, target, 100.0, 0.1).decay(10, 50) == pytest.approx(0.5**2)


def test_flip_mirrors_exactly_and_about_half_the_time() -> None:
    x, u = images(200), torch.rand(200, NUMBERS, generator=torch.Generator().manual_seed(0))
    y = augment(x, AugmentConfig(flip_lr=True), u)
    mirrored = (y == x.flip(-1)).all(dim=(1, 2, 3)) & (y != x).any(dim=3).any(dim=2).any(dim=1)
    untouched = (y == x).all(dim=(1, 2, 3))
    assert bool((mirrored | untouched).all())
    assert 70 < int(mirrored.sum()) < 130


def test_rotation_is_a_rotation_and_gain_keeps_background() -> None:
    x = torch.full((1, 1, 33, 33), -1.0)
    x[0, 0, 16, 26] = 1.0  # ten to the right of the centre
    u = torch.full((1, NUMBERS), 0.5)
    u[0, 0] = 1.0  # the largest angle
    turned = augment(x, AugmentConfig(rotate_deg=90), u)
    where = divmod(int(turned.argmax()), 33)
    assert where in ((26, 16), (6, 16))
    u[0, 6] = 1.0
    brighter = augment(x, AugmentConfig(gain=0.25), u)
    assert brighter[0, 0, 0, 0] == -1
    assert brighter[0, 0, 16, 26] == pytest.approx(1.5)


def test_two_processes_equal_one_with_twice_the_batch(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, torch
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        torch.set_num_threads(1)
        from test_trainer import images, weights
        from anodiff.config import parse_config
        from anodiff.training import Trainer
        from anodiff.training.processes import processes
        recipe = {tiny_recipe!r}
        recipe["training"]["batch_size"] = int(sys.argv[1])
        with processes(use_cuda=False) as group:
            trained = Trainer(parse_config(recipe), images(), images(8), device=torch.device("cpu"),
                              precision="fp32", processes=group)
            losses = [float(trained.step()) for _ in range(5)]
            if group.first:
                torch.save({{"losses": losses, "weights": weights(trained)}}, sys.argv[2])
        # on Linux
        print(*(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")))
        """)
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(world: int, batch: int, out: str) -> dict[str, Any]:
        environments = [
            {
                **os.environ,
                "WORLD_SIZE": str(world),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            for rank in range(world)
        ]
        command = [sys.executable, str(script), str(batch), str(tmp_path / out)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, env=e, **pipes) for e in environments]
        for process in running:
            threads, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            # a thread of the group that outlives it can abort the process while Python ends
            assert "gloo" not in threads
        return torch.load(tmp_path / out, weights_only=True)  # type: ignore[no-any-return]

    two, one = start(2, 4, "two.pt"), start(1, 8, "one.pt")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    distance = (two["weights"] - one["weights"]).norm() / one["weights"].norm()
    assert distance < 1e-4


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    from anodiff.engine.stopping import Stop

    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        trained = trainer(tiny_recipe, images=800)
        run_rows: list[LogRow] = []
        finished = trained.run(
            on_log=run_rows.append, on_validation=lambda _: None, on_tick=lambda _: None, should_stop=lambda: stop.asked
        )
    assert not finished
    assert trained.state.images_seen == 80
    save_checkpoint(trained, tmp_path / "checkpoint.pt")
    again = trainer(tiny_recipe, images=800)
    load_checkpoint(again, tmp_path / "checkpoint.pt")
    assert again.state.images_seen == 80
