"""Readers for the files researchers already have, one format a file; every complaint names the file and the line.

`eap_ig mib auto_circuit sva` return a `Task`; `needles ruler pope chair amber` return frozen records,
`head_scores` what `interp.retrieval_heads` returns, `node_scores` numbers by site, which `write_node_scores` writes;
circuits are read and written by `interp.Circuit`. Nothing is downloaded and no pickle is ever opened.
"""

from __future__ import annotations

from interp.formats.amber import amber
from interp.formats.auto_circuit import auto_circuit
from interp.formats.chair import chair
from interp.formats.eap_ig import eap_ig
from interp.formats.head_scores import head_scores
from interp.formats.mib import mib
from interp.formats.needles import needles
from interp.formats.node_scores import node_scores, write_node_scores
from interp.formats.pope import pope
from interp.formats.ruler import ruler
from interp.formats.sva import sva
from interp.reading import FormatError

__all__ = [
    "FormatError",
    "amber",
    "auto_circuit",
    "chair",
    "eap_ig",
    "head_scores",
    "mib",
    "needles",
    "node_scores",
    "pope",
    "ruler",
    "sva",
    "write_node_scores",
]
