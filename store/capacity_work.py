"""What making, reading and keeping a lake of known size takes: time, cores, rates and money. Pure arithmetic."""

from dataclasses import dataclass
from typing import Any

from neuronlake.store.capacity import Contents, LakeShape

# benchmarks/results/statistics.json, EWT train: everything of 17 tags, kept, 1.09e10 values in 10.7 s on two cores
PASS_VALUES_PER_SECOND = 0.5e9
"""Values that a pass of statistics takes in a second on one core."""
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Means:
    """What is there to work with. None: not known, and nothing is said of what depends on it."""

    tokens_per_second: float | None = None
    """Of one GPU."""
    gpus: int = 1
    encode_values_per_second: float
    """Of one core."""
    pass_values_per_second: float = PASS_VALUES_PER_SECOND
    """Of one core."""
    cores: int
    """For the analysis."""
    bandwidth_bytes_per_second: float | None = None
    gpu_hour_price: float | None = None
    storage_price: float | None = None
    """Per TB (10^12 bytes) and month."""
    months: float = 1.0
    egress_price: float | None = None
    """Per TB."""


def work(shape: LakeShape, lake: Contents, means: Means) -> dict[str, Any]:
    """Return stage → figures: ``extract``, ``analyse``, ``transfer``, ``keep``; what is not known is None."""
    values = lake.tokens * shape.values_per_token
    stored = lake.all_bytes
    extract: dict[str, Any] = {
        "tokens_per_second": None,
        "gpu_hours": None,
        "hours": None,
        "bytes_per_second": None,
        "encoding_cores": None,
        "encoding_core_hours": values / means.encode_values_per_second / _HOUR_S,
        "cost": None,
    }
    if means.tokens_per_second is not None:
        rate = means.tokens_per_second * means.gpus
        hours = lake.tokens / rate / _HOUR_S
        extract |= {
            "tokens_per_second": rate,
            "gpu_hours": hours * means.gpus,
            "hours": hours,
            "bytes_per_second": stored / lake.tokens * rate,
            "encoding_cores": rate * shape.values_per_token / means.encode_values_per_second,
            "cost": None if means.gpu_hour_price is None else hours * means.gpus * means.gpu_hour_price,
        }
    seconds = values / (means.pass_values_per_second * means.cores)
    read = lake.size["shards"] + lake.size["scales"]
    transfer = None if means.bandwidth_bytes_per_second is None else stored / means.bandwidth_bytes_per_second / _HOUR_S
    storage = None if means.storage_price is None else stored / 1e12 * means.storage_price
    return {
        "extract": extract,
        "analyse": {
            "pass_hours": seconds / _HOUR_S,
            "cores": means.cores,
            "bytes_read": read,
            "bytes_per_second": read / seconds,
        },
        "transfer": {
            "hours": transfer,
            "cost": None if means.egress_price is None else stored / 1e12 * means.egress_price,
        },
        "keep": {"months": means.months, "cost": None if storage is None else storage * means.months},
    }
