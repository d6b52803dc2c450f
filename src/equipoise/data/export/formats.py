"""All formats that data can be exported to, in one table."""

from equipoise.data.export.pku import PKU_FORMATS
from equipoise.data.export.rows import Format
from equipoise.data.export.trl import TRL_FORMATS

FORMATS: dict[str, Format] = {
    **PKU_FORMATS,
    **TRL_FORMATS,
    "records": Format(
        "records of this toolkit, with licence and origin", None, lambda _: (), "text-generation"
    ),
}
