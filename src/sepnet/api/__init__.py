"""The commands as Python functions: train, evaluate, predict, reproduce, compare.

import sepnet

run = sepnet.train("path/to/images")
print(run.record.result["test"]["accuracy"])
print(sepnet.predict(run.folder, ["cat.jpg"])[0].top)
"""

from sepnet.api._compare import CompareListener, Comparison, compare
from sepnet.api._compare_plan import ComparePlan, Contender, NamedNetwork, Trial, plan_comparison
from sepnet.api._estimate import seconds_per_run
from sepnet.api._evaluate import Evaluation, evaluate
from sepnet.api._experiment import Experiment
from sepnet.api._jobs import check_jobs
from sepnet.api._paper_report import write_report
from sepnet.api._plan import Plan, has_records, plan, timed
from sepnet.api._predict import Prediction, predict
from sepnet.api._release import Release, load_release, save_release
from sepnet.api._reproduce import Listener, reproduce
from sepnet.api._run import Run, build_model, check_unfinished, run_training
from sepnet.api._speed import SpeedTest
from sepnet.api._train import Request, resolve, run_folder, train

__all__ = [
    "CompareListener",
    "ComparePlan",
    "Comparison",
    "Contender",
    "Evaluation",
    "Experiment",
    "Listener",
    "NamedNetwork",
    "Plan",
    "Prediction",
    "Release",
    "Request",
    "Run",
    "SpeedTest",
    "Trial",
    "build_model",
    "check_jobs",
    "check_unfinished",
    "compare",
    "evaluate",
    "has_records",
    "load_release",
    "plan",
    "plan_comparison",
    "predict",
    "reproduce",
    "resolve",
    "run_folder",
    "run_training",
    "save_release",
    "seconds_per_run",
    "timed",
    "train",
    "write_report",
]
