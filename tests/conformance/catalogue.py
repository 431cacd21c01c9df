"""DTM's own tests, and which of ours show the same: a list per group, in DTM's order.

`m.SAGA` and the like are our test modules; a name in brackets is a part of a test's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.conformance import modules as m


@dataclass(frozen=True, slots=True)
class OurTest:
    """A test of ours: one that is there, and passed with some parameters or with those named."""

    module: str
    function: str
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A test of DTM's."""

    name: str
    tests: Sequence[OurTest] = ()
    note: str = ""
    """What ours leave out, and why; alone if there is none."""


def row(name: str, *tests: tuple[str, str], note: str = "") -> Row:
    return Row(f"Test{name}", [_test(module, named) for module, named in tests], note)


def _test(module: str, named: str) -> OurTest:
    function, _, parameters = named.partition("[")
    return OurTest(module, f"test_{function}", parameters.removesuffix("]"))


NO_MONGO = "none: there is no MongoDB store or barrier"


def none(*names: str, note: str) -> Sequence[Row]:
    return [row(name, note=f"none: {note}") for name in names]


CATALOGUE: Mapping[str, Sequence[Row]] = {
    "API and administration": (
        row("APIVersion", (m.API, "version"), (m.GRPC_API, "the_version")),
        row("APIQuery", (m.API, "query"), (m.TOPICS, "msg_normal"), (m.GRPC_API, "queries_answer_as_http_does")),
        row("APIAll", (m.API, "all"), (m.TOPICS, "all_filters_topic_messages_too")),
        row("APIScanKV", (m.TOPICS, "scan_kv")),
        row("APIQueryKV", (m.TOPICS, "query_kv")),
        row("APIResetCronTime", (m.API, "reset_cron_time")),
        row("APIForceStoppedNormal", (m.API, "force_stop")),
        row("APIForceStoppedAbnormal", (m.API, "force_stop"), (m.SDK_SAGA, "a_saga_that_succeeded_cannot_be_stopped")),
        row("APIResetNextCronTime", (m.API, "reset_next_cron_time_of_a_finished_one_notes_the_time")),
        row("DtmMetrics", (m.API, "metrics_and_health")),
        row("MustGenGid", (m.API, "new_gids_differ"), (m.GRPC_API, "new_gids_differ")),
        row(
            "GrpcPanic",
            (m.GRPC_API, "what_cannot_succeed_is_refused_with_the_reason"),
            (m.GRPC_API, "no_rubbish_is_a_fault_of_the_server"),
            note="an incomplete request is INVALID_ARGUMENT",
        ),
        row("BaseHttp", (m.SDK_FASTAPI, "any_other_error_is_500_and_in_the_log")),
        row("BaseSqlDB", (m.SDK_BARRIER, "work_that_fails_leaves_no_row_and_may_succeed_later")),
        *none("GeneralDB", note="of DTM's Go helpers for SQL only"),
        row(
            "UpdateBranchAsync",
            (m.SAGA, "normal"),
            (m.WORKFLOW, "a_registration_again_is_the_same_and_another_result_is_refused"),
            note="results have one way to the store, which has no flush interval",
        ),
        row("TopicNormal", (m.TOPICS, "topic_normal"), (m.GRPC_API, "the_subscribers_of_a_topic_come_and_go")),
        row("ConcurrentUpdateTopic", (m.TOPICS, "concurrent_update_topic")),
    ),
    "Storage": (
        row(
            "StoreSave",
            (m.CONTRACT, "what_was_created_is_found_as_it_was"),
            (m.CONTRACT, "an_unknown_gid_is_not_found"),
            (m.CONTRACT, "a_branch_that_was_registered_is_found_again"),
            (m.CONTRACT, "a_definition_is_not_written_under_an_old_epoch"),
            note="what guards a write is the epoch of its owner, not the status",
        ),
        row(
            "StoreChangeStatus",
            (m.CONTRACT, "a_write_after_a_take_over_changes_nothing"),
            (m.CONTRACT, "only_what_is_prepared_is_claimed"),
        ),
        row(
            "StoreLockTrans",
            (m.CONTRACT, "what_is_due_is_taken_over_earliest_first"),
            (m.CONTRACT, "nothing_is_taken_that_is_owned_or_final"),
            (m.CONTRACT, "two_nodes_that_take_over_at_once_get_different_ones"),
        ),
        row("StoreResetCronTime", (m.CONTRACT, "what_is_due_far_in_the_future_is_made_due_up_to_a_limit")),
        *none("UpdateBranches", note="of DTM's stores without SQL only"),
        row(
            "ResetTransGlobalCronTime",
            (m.CONTRACT, "a_parked_one_can_be_made_due"),
            (m.CONTRACT, "of_a_final_one_only_the_time_is_noted"),
        ),
        row(
            "WorkflowBranchConflict",
            (m.WORKFLOW, "a_registration_again_is_the_same_and_another_result_is_refused"),
        ),
    ),
    "Saga": (
        row("SagaNormal", (m.SAGA, "normal")),
        row("SagaRollback", (m.SAGA, "rollback")),
        row("SagaOngoingSucceed", (m.SAGA, "ongoing_succeed")),
        row("SagaFailed", (m.SAGA, "failed_with_a_compensation_in_error")),
        row("SagaAbnormal", (m.SAGA, "abnormal_submits_again")),
        row("SagaEmptyUrl", (m.SAGA, "empty_urls")),
        row("SagaCompatibleNormal", (m.SAGA, "compatible_payload_within_the_step")),
        row("SagaConNormal", (m.SAGA, "concurrent_normal")),
        row("SagaConRollbackNormal", (m.SAGA, "concurrent_rollback")),
        row("SagaConRollbackOrder", (m.SAGA, "concurrent_rollback_order")),
        row("SagaConRollbackOrder2", (m.SAGA, "concurrent_rollback_order_2")),
        row("SagaConCommittedOngoing", (m.SAGA, "concurrent_committed_ongoing")),
        row("SagaOptionsRetryOngoing", (m.SAGA, "retry_interval_after_ongoing")),
        row("SagaOptionsRetryError", (m.SAGA, "retry_interval_after_an_error")),
        row("SagaOptionsTimeout", (m.SAGA, "timeout_to_fail")),
        row("SagaGlobalTransWithRequestTimeout", (m.SAGA, "request_timeout_and_wait")),
        row("SagaOptionsNormalWait", (m.SAGA, "wait_normal")),
        row("SagaOptionsCommittedOngoingWait", (m.SAGA, "wait_ongoing")),
        row("SagaOptionsRollbackWait", (m.SAGA, "wait_rollback")),
        row("SagaHeaders", (m.SAGA, "headers")),
        row("SagaHeadersYes1", (m.SAGA, "headers")),
        row("SagaGlobalTransWithRetryLimitYes", (m.SAGA, "retry_limit_not_reached")),
        row("SagaGlobalTransWithRetryLimitNo", (m.SAGA, "retry_limit_exceeded")),
        row("SagaBarrierNormal", (m.BARRIER, "saga_normal")),
        row("SagaBarrierRollback", (m.BARRIER, "saga_rollback")),
        row("SagaBarrier2Normal", (m.BARRIER, "saga_with_two_calls_of_the_barrier_in_one_handler")),
        row("SagaBarrierRedisNormal", (m.REDIS, "saga_normal")),
        row("SagaBarrierRedisRollback", (m.REDIS, "saga_rollback")),
        row("SagaBarrierMongoNormal", note=NO_MONGO),
        row("SagaBarrierMongoRollback", note=NO_MONGO),
        row("SagaGrpcNormal", (m.GRPC, "saga_grpc_normal[grpc]")),
        row("SagaGrpcRollback", (m.GRPC, "saga_grpc_rollback[grpc]")),
        row("SagaGrpcCurrent", (m.GRPC, "saga_grpc_concurrent[grpc]")),
        row("SagaGrpcCurrentOrder", (m.GRPC, "saga_grpc_concurrent_order[grpc]")),
        row("SagaGrpcCommittedOngoing", (m.GRPC, "saga_grpc_committed_ongoing[grpc]")),
        row("SagaGrpcNormalWait", (m.GRPC, "saga_grpc_normal_wait[grpc]")),
        row("SagaGrpcEmptyUrl", (m.GRPC, "saga_grpc_empty_url[grpc]")),
        row("SagaGrpcWithGlobalTransRequestTimeout", (m.GRPC, "saga_grpc_with_a_request_timeout[grpc]")),
        row("SagaGrpcOptionsRollbackWait", (m.GRPC, "saga_grpc_options_rollback_wait[grpc]")),
        row("SagaGrpcHeaders", (m.GRPC, "saga_grpc_headers_on_each_call[grpc]")),
        row("SagaGrpcCronHeaders", (m.GRPC, "saga_grpc_headers_on_each_call[grpc]")),
        row("SagaGrpcBarrierNormal", (m.GRPC, "saga_grpc_barrier_normal[grpc]")),
        row("SagaGrpcBarrierRollback", (m.GRPC, "saga_grpc_barrier_rollback[grpc]")),
    ),
    "TCC": (
        row("TccNormal", (m.TCC, "normal"), (m.SDK_TCC, "all_is_tried_then_confirmed_last_branch_first")),
        row("TccRollback", (m.TCC, "rollback[new]"), (m.SDK_TCC, "a_refused_try_has_all_cancelled")),
        row("TccTimeout", (m.TCC, "timeout"), (m.SDK_TCC, "after_the_deadline_nothing_is_registered_or_submitted")),
        row("TccCompatible", (m.TCC, "what_other_clients_send_with_a_branch")),
        row(
            "TccHeaders",
            (m.TCC, "headers"),
            (m.SDK_CLIENT_TCC, "both_branches_are_registered_before_they_are_tried_and_then_submitted"),
        ),
        row("TccNested", (m.TCC, "nested"), (m.SDK_TCC, "a_participant_has_branches_of_its_own")),
        row("TccOldNormal", (m.TCC, "normal"), note="the participants of all these answer in the old style"),
        row("TccOldRollback", (m.TCC, "rollback[old]")),
        row("TccOldTimeout", (m.TCC, "timeout")),
        row("TccJrpcNormal", (m.JSON_RPC, "a_whole_tcc")),
        row("TccCoverNotConnected", (m.SDK_TCC, "without_a_coordinator_the_block_is_not_entered[http]")),
        row("TccCoverPanic", (m.SDK_TCC, "an_error_in_the_block_has_all_cancelled")),
        row("TccBarrierNormal", (m.TCC, "barrier_normal")),
        row("TccBarrierRollback", (m.TCC, "barrier_rollback")),
        row(
            "TccBarrierDisorderMysql",
            (m.TCC, "barrier_disorder[mysql]"),
            (m.TCC, "barrier_disorder[postgres]"),
            (m.TCC, "barrier_disorder[sqlite]"),
            (m.TCC, "barrier_try_and_cancel_at_the_same_time"),
        ),
        row("TccBarrierDisorderMongo", note=NO_MONGO),
        row("TccBarrierDisorderRedis", (m.REDIS, "tcc_disorder")),
        row("TccBarrierPanic", (m.TCC, "barrier_panic_takes_all_back")),
        row("TccGrpcNormal", (m.GRPC, "tcc_grpc_normal[grpc]"), (m.SDK_GRPC, "a_tcc_is_tried_then_confirmed[grpc]")),
        row(
            "TccGrpcRollback",
            (m.GRPC, "tcc_grpc_rollback[grpc]"),
            (m.SDK_GRPC, "a_refused_try_has_all_cancelled[grpc]"),
        ),
        row(
            "TccGrpcNested",
            (m.GRPC, "tcc_grpc_nested[grpc]"),
            (m.SDK_GRPC, "a_participant_has_branches_of_its_own[grpc]"),
        ),
        row(
            "TccGrpcType",
            (m.SDK_GRPC_PARTICIPANT, "a_call_that_is_none_of_a_branch_is_told_what_it_lacks"),
            (m.SDK_GRPC_CLIENT, "an_address_that_cannot_be_meant_is_refused"),
        ),
        row("TccGrpcHeaders", (m.GRPC, "tcc_grpc_headers[grpc]")),
        row("TccGrpcCoverNotConnected", (m.SDK_TCC, "without_a_coordinator_the_block_is_not_entered[grpc]")),
        row("TccGrpcCoverPanic", (m.SDK_GRPC, "an_error_in_the_block_has_all_cancelled[grpc]")),
        row(
            "TccGrpcCoverCallBranch",
            (m.SDK_GRPC_CLIENT, "a_branch_that_cannot_be_registered_is_not_a_branch"),
            (m.SDK_GRPC, "a_try_that_cannot_be_reached_has_all_cancelled[grpc]"),
            (m.SDK_CLIENT_TCC, "an_abort_that_fails_leaves_a_note_on_what_went_wrong_first"),
            (m.TCC, "timeout"),
        ),
    ),
    "XA": (
        row("XaNormal", (m.XA, "normal")),
        row("XaDuplicate", (m.XA, "a_branch_that_was_committed_by_hand")),
        row("XaRollback", (m.XA, "rollback"), (m.XA, "a_participant_that_refuses_is_not_registered")),
        row("XaLocalError", (m.XA, "local_error")),
        row("XaTimeout", (m.XA, "timeout"), (m.XA, "after_the_deadline_what_is_prepared_is_rolled_back")),
        row(
            "XaNotTimeout",
            (m.XA, "being_due_before_the_deadline_changes_nothing"),
            (m.XA, "a_commit_that_is_not_ready_is_called_again"),
        ),
        row("XaCoverDBError", (m.XA, "a_database_that_is_broken")),
        row("XaCoverDTMError", (m.XA, "no_coordinator")),
        row("XaCoverGidError", (m.XA, "a_gid_that_no_statement_could_hold"), note="such a gid does no harm"),
        row("XaGrpcNormal", (m.SDK_GRPC_XA, "normal[grpc]")),
        row("XaGrpcRollback", (m.SDK_GRPC_XA, "rollback[grpc]")),
        row("XaGrpcType", (m.SDK_GRPC_XA, "type"), (m.SDK_GRPC_XA, "local_error[grpc]")),
        row("XaGrpcLocalError", (m.SDK_GRPC_XA, "local_error[grpc]")),
    ),
    "Messages": (
        row("MsgNormal", (m.MSG, "normal"), (m.TOPICS, "msg_normal")),
        row("MsgTimeoutSuccess", (m.MSG, "timeout_success")),
        row("MsgTimeoutFailed", (m.MSG, "timeout_failed")),
        row("MsgAbnormal", (m.MSG, "abnormal")),
        row("MsgTopicNotFoundFailed", (m.TOPICS, "topic_not_found"), (m.MSG, "topic_not_found")),
        row("MsgDelayNormal", (m.MSG, "delay"), (m.MSG, "delay_that_elapses")),
        row("MsgOptionsTimeout", (m.MSG, "options_timeout"), (m.MSG, "a_check_back_in_error_is_repeated")),
        row("MsgOptionsTimeoutCustom", (m.MSG, "options_timeout"), (m.MSG, "timeout_success")),
        row("MsgOptionsTimeoutFailed", (m.MSG, "timeout_failed")),
        row("MsgConcurrent", (m.MSG, "concurrent"), (m.TOPICS, "concurrent_fan_out")),
        row("MsgWebhook", (m.WEBHOOK, "webhook")),
        row("MsgWebhookError", (m.WEBHOOK, "webhook_error")),
        row("MsgDoAndSubmit", (m.BARRIER, "message[http]")),
        row("MsgDoAndSubmitBusiFailed", (m.BARRIER, "message_whose_business_fails[http]")),
        row("MsgDoAndSubmitBusiLater", (m.BARRIER, "message_whose_business_comes_late[http]")),
        row("MsgDoAndSubmitPrepareFailed", (m.BARRIER, "message_that_cannot_be_prepared[http]")),
        row("MsgDoAndSubmitCommitFailed", (m.BARRIER, "message_with_an_error_at_its_commit[http-commit failed]")),
        row(
            "MsgDoAndSubmitCommitAfterFailed",
            (m.BARRIER, "message_with_an_error_at_its_commit[http-commit after failed]"),
        ),
        row("MsgRedisDo", (m.REDIS, "message[http]")),
        row("MsgRedisDoBusiFailed", (m.REDIS, "message_whose_business_fails[http]")),
        row("MsgRedisDoBusiLater", (m.REDIS, "message_whose_business_comes_late[http]")),
        row("MsgRedisDoPrepareFailed", (m.REDIS, "message_that_cannot_be_prepared[http]")),
        row("MsgRedisDoCommitFailed", (m.REDIS, "message_with_an_error_at_its_commit[http-commit failed]")),
        row("MsgRedisDoCommitAfterFailed", (m.REDIS, "message_with_an_error_at_its_commit[http-commit after failed]")),
        row("MsgMongoDoSucceed", note=NO_MONGO),
        row("MsgMongoDoBusiFailed", note=NO_MONGO),
        row("MsgMongoDoBusiLater", note=NO_MONGO),
        row("MsgMongoDoCommitFailed", note=NO_MONGO),
        row("MsgMongoDoCommitAfterFailed", note=NO_MONGO),
        row("MsgGrpcNormal", (m.GRPC, "msg_grpc_normal[grpc]"), (m.GRPC, "msg_grpc_of_a_topic[grpc]")),
        row("MsgGrpcTimeoutSuccess", (m.GRPC, "msg_grpc_timeout_success[grpc]")),
        row("MsgGrpcTimeoutFailed", (m.GRPC, "msg_grpc_timeout_failed[grpc]")),
        row(
            "MsgGrpcPrepareAndSubmit",
            (m.BARRIER, "message[grpc]"),
            (m.SDK_GRPC, "a_local_transaction_and_its_message_go_together[grpc]"),
        ),
        row(
            "MsgGrpcPrepareAndSubmitCommitAfterFailed",
            (m.BARRIER, "message_with_an_error_at_its_commit[grpc-commit after failed]"),
            (m.SDK_GRPC, "a_commit_that_failed_for_the_caller_only_is_delivered[grpc]"),
        ),
        row(
            "MsgGrpcPrepareAndSubmitCommitFailed",
            (m.BARRIER, "message_with_an_error_at_its_commit[grpc-commit failed]"),
        ),
        row("MsgGrpcRedisDo", (m.REDIS, "message[grpc]")),
        row("MsgGrpcRedisDoBusiFailed", (m.REDIS, "message_whose_business_fails[grpc]")),
        row("MsgGrpcRedisDoPrepareFailed", (m.REDIS, "message_that_cannot_be_prepared[grpc]")),
        row("MsgGrpcRedisDoCommitFailed", (m.REDIS, "message_with_an_error_at_its_commit[grpc-commit failed]")),
        row(
            "MsgGrpcRedisDoCommitAfterFailed",
            (m.REDIS, "message_with_an_error_at_its_commit[grpc-commit after failed]"),
        ),
        row("MsgJrpcNormal", (m.JSON_RPC, "a_whole_message"), (m.MSG, "json_rpc_participants")),
        row("MsgJrpcResults", (m.JSON_RPC, "whatever_an_action_answers_it_is_repeated")),
        row(
            "MsgJrpcDoAndSubmit",
            (m.JSON_RPC, "a_whole_message"),
            (m.JSON_RPC, "the_check_back_is_asked_over_json_rpc[error]"),
            (m.BARRIER, "message[http]"),
            note="the SDK offers messages over HTTP and gRPC",
        ),
        row(
            "MsgJrpcDoAndSubmitBusiFailed",
            (m.JSON_RPC, "the_check_back_is_asked_over_json_rpc[failure]"),
            (m.BARRIER, "message_whose_business_fails[http]"),
            note="as the row above",
        ),
        row("MsgJrpcRepeated", (m.JSON_RPC, "a_whole_message")),
        row("MsgJprcAbnormal", (m.JSON_RPC, "abnormal")),
        row("MsgJprcAbnormal2", (m.JSON_RPC, "a_new_gid_with_strange_params")),
    ),
    "Workflow": (
        row("WorkflowNormal", (m.WORKFLOW_SDK, "steps_then_commits_then_the_end[http]"), (m.WORKFLOW, "normal")),
        row(
            "WorkflowRet",
            (m.WORKFLOW_SDK, "the_result_is_returned_on_repeat"),
            (m.WORKFLOW, "its_end_is_returned_on_repeat"),
        ),
        row("WorkflowRollback", (m.WORKFLOW_SDK, "a_local_step_is_rolled_back_too")),
        row(
            "WorkflowTcc",
            (m.WORKFLOW_SDK, "steps_then_commits_then_the_end"),
            (m.DISORDER, "balances_are_exact_whatever_happens_to_a_call[workflow reserving]"),
        ),
        row(
            "WorkflowTccRollback",
            (m.WORKFLOW_SDK, "a_refused_step_fails_it_all"),
            (m.DISORDER, "balances_are_exact_whatever_happens_to_a_call[workflow reserving refused]"),
        ),
        row(
            "WorkflowError",
            (m.WORKFLOW_SDK, "what_is_interrupted_is_resumed_and_what_was_done_is_not_done_again[error]"),
        ),
        row(
            "WorkflowOngoing",
            (m.WORKFLOW_SDK, "what_is_interrupted_is_resumed_and_what_was_done_is_not_done_again[ongoing]"),
        ),
        row(
            "WorkflowResumeSkip",
            (m.WORKFLOW_SDK, "what_is_interrupted_is_resumed_and_what_was_done_is_not_done_again"),
        ),
        row("WorkflowSimpleResume", (m.WORKFLOW_SDK, "a_function_that_asks_for_patience_is_resumed")),
        row("WorkflowGrpcSimple", (m.WORKFLOW_SDK, "steps_over_grpc[grpc]")),
        row("WorkflowGrpcRollback", (m.WORKFLOW_SDK, "steps_over_grpc[grpc]")),
        row("WorkflowMixed", (m.WORKFLOW_SDK, "saga_tcc_and_xa_in_one")),
        row(
            "WorkflowGrpcError",
            (m.WORKFLOW_SDK, "steps_over_grpc[grpc]"),
            (m.SDK_GRPC, "a_workflow_that_was_interrupted_is_resumed_over_grpc[grpc]"),
        ),
        row("WorkflowGrpcRollbackResume", (m.WORKFLOW_SDK, "it_goes_on_through_patience_everywhere_over_grpc")),
        row("WorkflowXaAction", (m.WORKFLOW_SDK, "xa_steps_commit_together")),
        row("WorkflowXaRollback", (m.WORKFLOW_SDK, "xa_steps_roll_back_together")),
        row("WorkflowXaResume", (m.WORKFLOW_SDK, "xa_steps_go_on_through_patience_everywhere")),
        row(
            "WorkflowInterceptorOutsideSaga",
            (m.SDK_GRPC_PARTICIPANT, "calls_that_are_none_of_a_branch_go_through_untouched"),
        ),
    ),
    "Units": (
        row(
            "SetNextCron",
            (m.RETRY, "the_delays_of_a_transaction"),
            (m.RETRY, "errors_in_a_row_double_the_delay_up_to_the_cap"),
        ),
        *(
            row(
                name,
                (m.GRPC_API, "a_caller_that_goes_does_not_take_the_transaction_along"),
                note="what DTM's contexts in Go are for",
            )
            for name in ("NewAsyncContext", "AsyncContext", "AsyncContextRecursive", "CopyContextWithMetadata")
        ),
        row(
            "Utils",
            (m.OWNERSHIP, "what_a_dead_node_drove_is_taken_over_when_its_lease_has_ended"),
            note="in place of DTM's cron",
        ),
        row(
            "CheckConfig",
            (m.SETTINGS, "a_wrong_value_is_named_with_what_is_allowed"),
            (m.SETTINGS, "all_that_is_wrong_is_named_at_once"),
        ),
        row("Config", (m.SETTINGS, "defaults_agree_with_those_of_the_parts")),
        row(
            "LoadConfig",
            (m.SETTINGS, "a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default"),
        ),
        row("LoadFromEnv", (m.SETTINGS, "a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default")),
        row("Gin", (m.API_ANSWERS, "ping_answers_any_method"), (m.SDK_FASTAPI, "returning_is_success")),
        *none("Funcs", note="of DTM's Go helpers only"),
        row("RecoverPanic", (m.API_ANSWERS, "what_nobody_expected_is_an_incident_in_the_log")),
        *none(
            "InitializeBuckets",
            "CleanupExpiredData",
            "CleanupGlobalWithGids",
            "CleanupBranchWithGids",
            "CleanupIndexWithGids",
            note="of DTM's store in boltdb only",
        ),
        row(
            "Types",
            (m.SDK_BARRIER_DRIVERS, "each_part_of_a_barrier_is_needed"),
            (m.SDK_CLIENT_TCC, "ninety_nine_branches_are_the_most"),
        ),
        row("Query", (m.SDK_FASTAPI, "what_is_not_a_branch_call_is_told_what_it_lacks")),
        row("XaSqlTimeout", (m.SDK_XA, "the_lock_timeout_of_the_work_is_its_own")),
        row("DBSpecial", (m.SDK_BARRIER_RULE, "every_value_has_its_mark")),
        *none("EP", "Ternary", "Marshal", "Some", note="of DTM's Go helpers only"),
        row("NewMsgGrpc", (m.SDK_GRPC_CLIENT, "a_message_that_is_concurrent_says_so_where_there_is_room")),
        row("NewSagaGrpc", (m.SDK_GRPC_CLIENT, "a_saga_is_written_as_dtm_s_message")),
        row(
            "NewSagaGrpcWithContext",
            (m.GRPC_API, "a_caller_that_goes_does_not_take_the_transaction_along"),
            note="what DTM's contexts in Go are for",
        ),
        row("Type", (m.SDK_GRPC_PARTICIPANT, "a_call_that_is_none_of_a_branch_is_told_what_it_lacks")),
        row(
            "Abnormal",
            (m.SDK_WORKFLOW, "a_workflow_that_is_not_known_here_is_named_in_the_log"),
            (m.SDK_WORKFLOW, "what_cannot_work_is_refused_where_it_is_written"),
        ),
    ),
}
