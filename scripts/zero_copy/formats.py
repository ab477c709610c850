"""Figures as people read them."""


def short_time(seconds: float) -> str:
    """A time, to two or three digits.

    seconds (float): The time.
    RETURNS (str): `9.4 ms`, `0.35 s`, `12 s`, `3.5 min` or `2.1 h`.
    """
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}".replace(".0 ", " ")
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def percent(value: float | dict[str, float | None] | None) -> str:
    """A share in percent, without the sign.

    value (Union[float, Dict[str, Optional[float]], None]): The share; or mean and standard
        deviation over seeds.
    RETURNS (str): `96.89` or `96.89 ± 0.21`; empty if there is none.
    """
    if isinstance(value, dict):
        deviation = value["sd"]
        return percent(value["mean"]) + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    return "" if value is None else f"{100 * value:.2f}"


def count(value: float | None) -> str:
    """A large number, to three digits.

    value (Optional[float]): The number.
    RETURNS (str): `907,000`; empty if there is none.
    """
    return "" if value is None else f"{float(f'{value:.3g}'):,.0f}"


def megabytes(value: float | None) -> str:
    """A size.

    value (Optional[float]): Bytes.
    RETURNS (str): `1,369`, in units of 2^20 bytes; empty if there is none.
    """
    return "" if value is None else f"{value / 2**20:,.0f}"
