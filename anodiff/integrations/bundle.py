"""A model as a MONAI bundle: a folder that ``python -m monai.bundle run`` scores scans with, wherever anodiff is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anodiff.errors import AnodiffError, ModelFileError, StorageError
from anodiff.files import atomic_write, make_folder, write_csv, write_json

if TYPE_CHECKING:
    from monai.transforms import Transform
    from torch import nn

    from anodiff.model import DiffusionModel

MODEL = "models/model.safetensors"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
COLUMNS = ("path", "score", "p_value", "is_anomalous", "status", "error", "remarks")
VOLUMES = (".nii", ".nii.gz")
SUFFIXES = (*VOLUMES, ".png", ".jpg", ".jpeg", ".bmp")


def export_bundle(model: DiffusionModel, folder: str | Path) -> Path:
    """Write ``model``, which must have been loaded from a file, as a bundle into a new folder; returns that.

    Raises ModelFileError for a model without a file, StorageError where the folder is there already or cannot be
    written.
    """
    if model.path is None:
        raise ModelFileError(f"{model.config.name}: expected a model that was loaded from a file, found one without")
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise StorageError(f"{root}: expected a new or empty folder, found one with something in it")
    for name in ("configs", "models", "docs"):
        make_folder(root / name)
    atomic_write(root / MODEL, model.path.read_bytes())
    write_json(root / "configs/inference.json", inference_config(model))
    atomic_write(root / "docs/README.md", readme(model))
    write_json(root / "configs/metadata.json", metadata(model))
    return root


def inference_config(model: DiffusionModel) -> dict[str, Any]:
    """configs/inference.json: what is read, run and written, by the names that MONAI's workflows look for."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "model_file": f"$@bundle_root + '/{MODEL}'",
        "preset": model.config.preset,
        "value_range": None,
        "foreground": "",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": {"_target_": "anodiff.integrations.bundle.find", "folder": "@dataset_dir"},
        "network_def": {"_target_": "anodiff.integrations.bundle.network", "model": "@model_file"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                # The type that a file has is kept: it says what black and white are.
                {"_target_": "LoadImaged", "keys": "image", "dtype": None},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": "anodiff.integrations.bundle.with_foregrounds",
                "paths": "@datalist",
                "foreground": "@foreground",
            },
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "anodiff.integrations.monai.AnomalyMapd",
            "keys": "image",
            "foreground_key": "foreground",
            "model": "@model_file",
            "preset": "@preset",
            "value_range": "@value_range",
            "rows_first": False,
            "device": "$str(@device)",
        },
        "postprocessing": {
            "_target_": "SaveImaged",
            "keys": "image_anomaly",
            "output_dir": "@output_dir",
            "output_postfix": "anomaly",
            "output_ext": ".nii.gz",
            "data_root_dir": "@dataset_dir",
            "separate_folder": False,
            "resample": False,
            "print_log": False,
        },
        "evaluator": {
            "_target_": "anodiff.integrations.bundle.Evaluator",
            "dataset": "@dataset",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(model: DiffusionModel) -> dict[str, Any]:
    """configs/metadata.json, by MONAI's schema."""
    config = model.config
    channels, size = config.preprocess.channels, config.preprocess.size
    names = {str(channel): "image" if channels == 1 else f"channel {channel}" for channel in range(channels)}
    packages = ("anodiff", "nibabel", "safetensors", "pydantic", "pillow", "scipy")
    description = config.description or f"Anomaly maps by a diffusion model of normal images ({config.name})"
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by anodiff {version('anodiff')} on {date.today().isoformat()}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in packages},
        "name": f"{config.name} anomaly detection",
        "task": "anomaly detection",
        "description": description,
        "authors": "the user of anodiff who exported it",
        "copyright": "of the weights: whoever trained them",
        "data_type": "NIfTI, PNG, JPEG",
        "intended_use": "Research; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": channels,
                    "spatial_shape": list(size) if config.volume is None else ["*", "*", "*"],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": config.network_dims == 3,
                    "channel_def": names,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "anomaly map",
                    "num_channels": 1,
                    "spatial_shape": list(size) if config.volume is None else ["*", "*", "*"],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "anomaly map, larger = more anomalous"},
                }
            },
        },
    }


def readme(model: DiffusionModel) -> str:
    """docs/README.md."""
    config = model.config
    calibration = model.calibrations.get(config.preset)
    known = "It is not calibrated for it: scores are raw, without p-value or threshold."
    if calibration is not None:
        known = (
            f"It is calibrated: {calibration.rate:g} of normal inputs ({calibration.unit}s) score above its threshold."
        )
        if calibration.threshold is None:
            known = f"It is calibrated, without a threshold: {calibration.message}"
    return f"""# {config.name}

{config.description or "A diffusion model of normal images."} Its detector preset is `{config.preset}`. {known}

```
pip install "anodiff[bundle]"
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --dataset_dir scans --output_dir maps
```

Reads NIfTI volumes and PNG or JPEG images (intensities as stored: the model prepares them itself), and writes

- `maps/<name>_anomaly.nii.gz`: float32 maps with the grid and affine of the input, larger = more anomalous. Maps of
  PNG and JPEG images are indexed (column, row), as MONAI reads those;
- `maps/scores.csv`: `{",".join(COLUMNS)}`; an input that cannot be used is a row with its error.

`--value_range "[0, 255]"` says which values mean black and white, where the file's type does not; `--preset NAME`
chooses another detector; `--device cpu` where it runs.

A brain mask beside a volume (`x_brain_mask.nii.gz` beside `x.nii.gz`, and the other names that `anodiff score` knows)
is its foreground and no input; `--foreground "{{stem}}_bet.nii.gz"` names others, `--foreground none` takes none.
"""


def network(model: str | Path) -> nn.Module:
    """The denoiser D(x, sigma) of a model file. Raises ModelFileError."""
    from anodiff.model import load

    return load(model).denoiser


def find(folder: str | Path) -> list[str]:
    """Images and volumes below a folder, sorted; not the foreground of another one by its name.

    Raises StorageError where there is no such folder.
    """
    from anodiff.data.layouts.foregrounds import foregrounds_among

    root = Path(folder)
    if not root.is_dir():
        raise StorageError(f"{root}: expected a folder of images or volumes (--dataset_dir), found none")
    paths = sorted(str(path) for path in root.rglob("*") if path.name.lower().endswith(SUFFIXES))
    masks = foregrounds_among(_volumes(paths))
    return [path for path in paths if path not in masks]


def with_foregrounds(paths: Sequence[str], foreground: str = "") -> list[dict[str, str]]:
    """Each path as "image", with the path of its given "foreground", "" where that is estimated.

    foreground: as ``--foreground`` of ``anodiff score``: "" finds those of volumes by their names, "none" takes none, a
    pattern such as ``{stem}_bet.nii.gz`` names them. Raises ConfigError for anything else, and where none is there.
    """
    from anodiff.data.layouts.foregrounds import foregrounds_of, without

    found = foregrounds_of(paths, foreground) if foreground else foregrounds_of(_volumes(paths), by_name=True)
    return [{"image": path, "foreground": found.get(path, "")} for path in without(paths, found)]


def _volumes(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if path.lower().endswith(VOLUMES)]


class Evaluator:
    """Runs a bundle: every input through the inferer, its map through the postprocessing, its score into scores.csv.

    dataset: of dictionaries with "image"; inferer: adds ``image_anomaly`` and ``image_score`` (`AnomalyMapd`).
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        inferer: Transform,
        postprocessing: Transform,
        output_dir: str | Path,
    ) -> None:
        self.dataset, self.inferer, self.postprocessing = dataset, inferer, postprocessing
        self.output = Path(output_dir)

    def run(self) -> list[dict[str, Any]]:
        """Scores all inputs; returns the rows of scores.csv. An input that fails is a row with its error.

        Raises StorageError where nothing can be written; ConfigError, ModelFileError.
        """
        make_folder(self.output)
        rows = [self._row(n) for n in range(len(self.dataset))]
        write_csv(self.output / "scores.csv", COLUMNS, rows)
        failed = sum(row["status"] == "failed" for row in rows)
        data = self.dataset.data  # type: ignore[attr-defined]
        given = sum(bool(each.get("foreground")) for each in data)
        if given:
            print(f"the foreground of {given} of {len(rows)} inputs is given")
        print(f"{len(rows)} inputs, {failed} failed; wrote {self.output / 'scores.csv'}")
        return rows

    def _row(self, n: int) -> dict[str, Any]:
        path = self.dataset.data[n]["image"]  # type: ignore[attr-defined]
        try:
            found = self.inferer(self.dataset[n])
            self.postprocessing(found)
        except (StorageError, ModelFileError):
            raise
        except Exception as error:  # a reader of any library, and any of its errors
            cause = _root_cause(error)
            return {"path": path, "status": "failed", "error": " ".join(str(cause).split())}
        return {
            "path": path,
            "score": found["image_score"],
            "p_value": found.get("image_p_value"),
            "is_anomalous": found.get("image_anomalous"),
            "status": "ok",
            "remarks": found.get("image_remarks"),
        }


def _root_cause(error: BaseException) -> BaseException:
    """Our own sentence below what Compose wraps round it; else the first cause."""
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    return next((each for each in chain if isinstance(each, AnodiffError)), chain[-1])
