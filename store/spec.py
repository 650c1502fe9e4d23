"""What a lake is of: the settings that decide every stored byte, kept in the root's attributes."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import neuronlake.store.layout as layout
from neuronlake.store.encodings import get_encoding
from neuronlake.store.errors import DamageError, InputError
from neuronlake.store.layout import FORMAT_VERSION, Geometry
from neuronlake.store.objects import LakePath
from neuronlake.store.quantise import PARAMETERS
from neuronlake.store.shard import index_codecs


@dataclass(frozen=True, kw_only=True)
class LakeSpec:
    """Identity and shape of a lake. Two lakes with equal specs hold the same values."""

    model: Mapping[str, Any]
    """Identity of the weights: name, sha256, architecture."""
    capture: Mapping[str, Any]
    """What changes values: compute dtype, attention implementation."""
    plan: Mapping[str, Any]
    """Inputs of the plan: corpus identity, tokenizer hash, context, limits."""
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    neurons: int
    """Units per layer of the first site: its neurons."""
    block_rows: int
    chunk_neurons: int
    encoding: str
    widths: Mapping[str, int] = field(default_factory=dict)
    """Units per layer of each further site that has another number of them, such as the residual stream."""
    whole: "LakeSpec | None" = field(default=None, repr=False)
    """The lake as it was made, where sites were dropped since: that is its identity, and what its records hold."""

    def __post_init__(self) -> None:
        get_encoding(self.encoding)
        for name in ("neurons", "block_rows", "chunk_neurons"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for site, width in self.widths.items():
            if site not in self.sites[1:] or width < 1:
                raise InputError(f"widths: {site!r} has {width}, expected at least 1 unit, of one of {self.sites[1:]}")
        if self.block_rows & (self.block_rows - 1):
            raise InputError(f"block_rows must be a power of two, got {self.block_rows}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over everything above and the format version, but for the model's name."""
        text = json.dumps(self._identity(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def without(self, dropped: Collection[str]) -> "LakeSpec":
        """Return what is left of the lake without some sites: the others' shape, with the identity that it was made with."""
        kept = tuple(site for site in self.sites if site not in dropped)
        if kept == self.sites:
            return self
        if not kept:
            raise InputError(f"without {', '.join(dropped)} no site is left")
        neurons = self.width(kept[0])
        widths = {site: self.width(site) for site in kept if self.width(site) != neurons}
        return dataclasses.replace(self, sites=kept, neurons=neurons, widths=widths, whole=self.whole or self)

    def width(self, site: str) -> int:
        """Units per layer of a site."""
        return self.widths.get(site, self.neurons)

    def geometry(self, site: str, blocks: int = 0) -> Geometry:
        """Return the shape of a site's arrays for that many blocks."""
        return Geometry(
            blocks=blocks, block_rows=self.block_rows, neurons=self.width(site), chunk_neurons=self.chunk_neurons
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, as stored under the root's attribute ``neuronlake``; with the sites that were dropped."""
        if self.whole is not None:
            return self.whole.as_dict()
        return {
            "format_version": FORMAT_VERSION,
            "model": dict(self.model),
            "capture": dict(self.capture),
            "plan": dict(self.plan),
            "sites": list(self.sites),
            "layers": list(self.layers),
            "neurons": self.neurons,
            "block_rows": self.block_rows,
            "chunk_neurons": self.chunk_neurons,
            "encoding": self.encoding,
            **({"widths": dict(self.widths)} if self.widths else {}),
        }

    def _identity(self) -> dict[str, Any]:
        # A model folder may be renamed or moved: the hash of the weights says which model it is.
        return {**self.as_dict(), "model": {key: value for key, value in self.model.items() if key != "name"}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: LakePath) -> "LakeSpec":
        """Read the JSON form back.

        Raises
        ------
        InputError
            When it is of another format version.
        DamageError
            When a field is missing.
        """
        version = record.get("format_version")
        if not isinstance(version, int):
            raise DamageError(f"{where} has no format version: it is damaged or no lake")
        if version != FORMAT_VERSION:
            newer = "upgrade neuronlake" if version > FORMAT_VERSION else "no release ever wrote that: the record is wrong"
            raise InputError(f"{where} is of lake format {version}, this neuronlake reads format {FORMAT_VERSION}: {newer}")
        try:
            return cls(
                model=record["model"],
                capture=record["capture"],
                plan=record["plan"],
                sites=tuple(record["sites"]),
                layers=tuple(record["layers"]),
                neurons=record["neurons"],
                block_rows=record["block_rows"],
                chunk_neurons=record["chunk_neurons"],
                encoding=record["encoding"],
                widths=record.get("widths", {}),
            )
        except (KeyError, TypeError) as error:
            raise DamageError(f"{where} lacks {error} in its attributes: it is damaged") from None

    def differences(self, other: "LakeSpec") -> list[str]:
        """Return one line per setting that differs, ``path: X in the lake, Y now`` (self is the lake)."""
        # through JSON, so that a tuple equals the list it is stored as
        here, there = (json.loads(json.dumps(spec._identity())) for spec in (self, other))
        return _differences(here, there, "")


def root_metadata(spec: LakeSpec) -> dict[str, Any]:
    """Return the root group's ``zarr.json``."""
    return group_metadata({"neuronlake": spec.as_dict()})


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return a Zarr v3 group's metadata."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_metadata(spec: LakeSpec, site: str, layer: int, blocks: int) -> dict[str, Any]:
    """Return the ``zarr.json`` of one layer's array: (rows, neurons), one shard per block."""
    encoding, geometry = get_encoding(spec.encoding), spec.geometry(site, blocks)
    inner = [geometry.block_rows, geometry.chunk_neurons]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [geometry.rows, geometry.neurons],
        "data_type": encoding.zarr_dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [geometry.block_rows, geometry.chunks * geometry.chunk_neurons]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0 if encoding.zarr_dtype.startswith("uint") else 0.0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": inner,
                    "codecs": encoding.codecs(),
                    "index_codecs": index_codecs(),
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": ["row", "neuron"],
        "attributes": {
            "site": site,
            "layer": layer,
            "encoding": spec.encoding,
            "decode": encoding.decode_formula,
            **({"scales": f"scales/{site}"} if encoding.quantised else {}),
            "note": "rows of blocks without a commit record are absent, whatever fill value a reader shows",
        },
    }


def scales_metadata(spec: LakeSpec, site: str, blocks: int) -> dict[str, Any]:
    """Return the ``zarr.json`` of a site's scales: float32 (layers, blocks, neurons, 2), one shard per block.

    An inner chunk is one layer, so that reading a column of one layer does not read the scales of all.
    """
    layers, width = len(spec.layers), spec.width(site)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [layers, blocks, width, PARAMETERS],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layers, 1, width, PARAMETERS]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, 1, width, PARAMETERS],
                    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                    "index_codecs": index_codecs(),
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": ["layer", "block", "neuron", "parameter"],
        "attributes": {"site": site, "layers": list(spec.layers), "parameters": ["unit", "knee"]},
    }


def metadata_files(spec: LakeSpec, blocks: int) -> dict[str, dict[str, Any]]:
    """Return path → metadata of every Zarr node below the root."""
    files = {"activations/zarr.json": group_metadata({})}
    for site in spec.sites:
        files[f"activations/{site}/zarr.json"] = group_metadata({"site": site})
        for layer in spec.layers:
            files[f"{layout.array_path(site, layer)}/zarr.json"] = array_metadata(spec, site, layer, blocks)
    if get_encoding(spec.encoding).quantised:
        files["scales/zarr.json"] = group_metadata({})
        for site in spec.sites:
            files[f"scales/{site}/zarr.json"] = scales_metadata(spec, site, blocks)
    return files


def dump_metadata(metadata: dict[str, Any]) -> bytes:
    """Serialise metadata; the same input always gives the same bytes."""
    return (json.dumps(metadata, indent=1, ensure_ascii=False) + "\n").encode()


def _differences(here: Any, there: Any, path: str) -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        keys = list(here) + [key for key in there if key not in here]
        return [
            line for key in keys for line in _differences(here.get(key), there.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if here == there else [f"{path}: {_short(here)} in the lake, {_short(there)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
