"""Complete, frozen configurations; one file a paper, with the paper's numbers and the expected result."""

from sepnet.recipes._claims import NOT_MEASURED, Claim, Findings, parameters
from sepnet.recipes._config import TrainConfig, load_yaml, merge, parse_yaml, save_yaml
from sepnet.recipes._paper import Figure, Paper, PaperTable, Published, Speed, papers
from sepnet.recipes._registry import DataFacts, Recipe, recipes, register_recipe

__all__ = [
    "NOT_MEASURED",
    "Claim",
    "DataFacts",
    "Figure",
    "Findings",
    "Paper",
    "PaperTable",
    "Published",
    "Recipe",
    "Speed",
    "TrainConfig",
    "load_yaml",
    "merge",
    "papers",
    "parameters",
    "parse_yaml",
    "recipes",
    "register_recipe",
    "save_yaml",
]
