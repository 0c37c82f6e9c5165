"""The papers behind the methods of a report, as BibTeX."""

from __future__ import annotations

from collections.abc import Iterable

PAPERS: dict[str, tuple[str, str, int, str]] = {
    "vig2020causal": (
        "Vig, Jesse and Gehrmann, Sebastian and Belinkov, Yonatan and Qian, Sharon and Nevo, Daniel and Sakenis, Simas"
        " and Huang, Jason and Singer, Yaron and Shieber, Stuart",
        "Causal Mediation Analysis for Interpreting Neural NLP: The Case of Gender Bias", 2020, "2004.12265",
    ),
    "zhang2024patching": (
        "Zhang, Fred and Nanda, Neel",
        "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods", 2023, "2309.16042",
    ),
    "wang2022ioi": (
        "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob",
        "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small", 2022, "2211.00593",
    ),
    "syed2023attribution": (
        "Syed, Aaquib and Rager, Can and Conmy, Arthur",
        "Attribution Patching Outperforms Automated Circuit Discovery", 2023, "2310.10348",
    ),
    "kramar2024atp": (
        "Kramár, János and Lieberum, Tom and Shah, Rohin and Nanda, Neel",
        "AtP*: An efficient and scalable method for localizing LLM behaviour to components", 2024, "2403.00745",
    ),
    "jafari2025relp": (
        "Jafari, Farnoush Rezaei and Eberle, Oliver and Khakzar, Ashkan and Nanda, Neel",
        "RelP: Faithful and Efficient Circuit Discovery in Language Models via Relevance Patching", 2025, "2508.21258",
    ),
    "hanna2024faith": (
        "Hanna, Michael and Pezzelle, Sandro and Belinkov, Yonatan",
        "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms", 2024, "2403.17806",
    ),
    "mueller2025mib": (
        "Mueller, Aaron and Geiger, Atticus and Wiegreffe, Sarah and others",
        "MIB: A Mechanistic Interpretability Benchmark", 2025, "2504.13151",
    ),
    "gu2024sinks": (
        "Gu, Xiangming and Pang, Tianyu and Du, Chao and Liu, Qian and Zhang, Fengzhuo and Du, Cunxiao and Wang, Ye"
        " and Lin, Min",
        "When Attention Sink Emerges in Language Models: An Empirical View", 2024, "2410.10781",
    ),
    "olsson2022induction": (
        "Olsson, Catherine and Elhage, Nelson and Nanda, Neel and Joseph, Nicholas and others",
        "In-context Learning and Induction Heads", 2022, "2209.11895",
    ),
    "voita2019heads": (
        "Voita, Elena and Talbot, David and Moiseev, Fedor and Sennrich, Rico and Titov, Ivan",
        "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned", 2019,
        "1905.09418",
    ),
}  # fmt: skip
BEHIND: dict[str, tuple[str, ...]] = {
    "patch": ("vig2020causal", "zhang2024patching"),
    "relp": ("jafari2025relp", "syed2023attribution"),
    "atp": ("syed2023attribution", "kramar2024atp"),
    "direct effect": ("wang2022ioi",),
    "sink": ("gu2024sinks",),
    "circuit": ("hanna2024faith", "mueller2025mib"),
    "induction": ("olsson2022induction",),
    "previous": ("voita2019heads",),
}
"""Keys by the start of a method's name."""


def cited(methods: Iterable[str]) -> tuple[str, ...]:
    """The keys of the papers behind these methods."""
    return tuple(
        sorted({key for m in methods for start, keys in BEHIND.items() if m.startswith(start) for key in keys})
    )


def bibtex(methods: Iterable[str]) -> str:
    """Their entries."""
    return "\n".join(_entry(key) for key in cited(methods))


def _entry(key: str) -> str:
    authors, title, year, number = PAPERS[key]
    return (
        f"@misc{{{key},\n  author = {{{authors}}},\n  title = {{{{{title}}}}},\n  year = {{{year}}},\n"
        f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n}}\n"
    )
