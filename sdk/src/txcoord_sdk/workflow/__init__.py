"""Workflows: functions whose steps are recorded, and which go on after a crash. See docs/workflow.md."""

from txcoord_sdk.branch import BranchContext, BranchFailed, BranchOngoing
from txcoord_sdk.workflow._works import CallAnswer
from txcoord_sdk.workflow.errors import StepFailed, WorkflowChangedError, WorkflowInterruptedError
from txcoord_sdk.workflow.workflow import AsyncWorkflow, AsyncWorkflowBranch, Workflow, WorkflowBranch
from txcoord_sdk.workflow.workflows import AsyncWorkflowFunction, AsyncWorkflows, WorkflowFunction, Workflows

__all__ = [
    "AsyncWorkflow",
    "AsyncWorkflowBranch",
    "AsyncWorkflowFunction",
    "AsyncWorkflows",
    "BranchContext",
    "BranchFailed",
    "BranchOngoing",
    "CallAnswer",
    "StepFailed",
    "Workflow",
    "WorkflowBranch",
    "WorkflowChangedError",
    "WorkflowFunction",
    "WorkflowInterruptedError",
    "Workflows",
]
