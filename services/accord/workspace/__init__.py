"""The laptop's Accord: a folder with everything in it, and the four services as processes of this machine."""

from accord.workspace.configuration import JudgeTable
from accord.workspace.workspace import Services, Workspace

__all__ = ["JudgeTable", "Services", "Workspace"]
