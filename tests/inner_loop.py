"""The tests of `make test` that start processes; see "Tests" in CONTRIBUTING.md.

`make test` is for the inner loop: under three minutes on two cores once everything is built, lint and types
included. It runs the tests that compute (tests/unit, tests/sim, tests/fuzz), the conformance of devices
(tests/device, tests/emulation, tests/native), and, of the tests that serve over sockets, the stories below:
each is a user's normal procedure, or a failure that the cluster survives. All other tests get the mark
`outer` from tests/conftest.py, and `make test-all` runs them.

A new story replaces another, or takes less than a second of processor time beside the cluster of its module.
"""

from __future__ import annotations

COMPUTING = ("device", "emulation", "fuzz", "native", "sim", "unit")
"""Folders of tests/ whose tests are all part of `make test`, unless they are marked slow, conformance or
long."""

STORIES = {
    "test_cli": (
        "test_a_missing_library_is_named_before_anything_is_fetched",
        "test_a_refusal_says_what_would_have_been_admitted",
        "test_an_image_becomes_a_visible_answer",
        "test_several_inputs_by_name",
        "test_status",
    ),
    "test_client": (
        "test_a_caller_hands_its_call_over_when_another_thread_comes",
        "test_a_lone_caller_does_its_own_io",
        "test_a_lost_connection_fails_what_was_sent_and_comes_back",
        "test_a_timeout_ends_the_call_and_cancels_the_request",
        "test_an_upload_keeps_its_window_and_arrives_whole",
        "test_array_in_array_out",
        "test_cancelling_a_future_cancels_the_request",
        "test_failures_arrive_as_exceptions_by_both_ways",
        "test_many_threads_share_one_client_and_each_gets_its_own_answer",
        "test_nobody_there",
    ),
    "test_client_async": (
        "test_cancelling_a_task_cancels_its_request",
        "test_many_tasks_share_one_client",
    ),
    "test_client_loop": ("test_many_requests_at_once_and_no_thread",),
    "test_cluster": ("test_a_newcomers_first_minute",),
    "test_cluster_cli": (
        "test_a_probe_says_by_its_exit_status_who_is_well",
        "test_infer_reads_images_and_arrays_alike_and_writes_files",
        "test_models_come_are_shown_and_go",
    ),
    "test_cluster_emulated": ("test_devices_that_fail_now_and_then_are_survived",),
    "test_cluster_failures": (
        "test_a_controller_killed_and_restarted_is_found_again_by_all",
        "test_workers_share_die_and_are_replaced_without_one_failed_request",
    ),
    "test_cluster_models": (
        "test_a_model_is_registered_asked_and_removed",
        "test_a_new_version_takes_over_under_load_without_one_failed_request",
        "test_bad_model_files_get_clear_errors_and_harm_nothing",
        "test_several_inputs_and_outputs_travel_by_name",
        "test_the_same_from_asyncio",
        "test_unregistering_drains_what_was_admitted",
        "test_unsound_inputs_are_named",
        "test_what_is_unloaded_serves_nobody_until_it_is_loaded",
    ),
    "test_controller": (
        "test_a_client_that_vanishes_takes_its_requests_along",
        "test_a_request_crosses_client_controller_and_worker",
        "test_a_restarted_controller_finds_its_models",
        "test_an_action_lost_with_its_worker_is_done_by_another",
        "test_bad_tensors_are_named_and_harm_nobody",
        "test_new_content_becomes_the_next_version_when_it_is_ready",
        "test_requests_that_wait_together_travel_in_one_batch_and_get_their_own_rows",
        "test_unregistering_drains_first",
    ),
    "test_durability": ("test_a_full_disk_refuses_what_needs_room_and_is_emptied_by_unregistering",),
    "test_gateway_grpc": (
        "test_a_failure_has_its_status_and_its_facts",
        "test_a_stream_answers_in_order_and_goes_on_after_an_error",
        "test_only_the_outputs_asked_for_come_and_in_that_order",
        "test_raw_tensors_pass_as_they_are",
    ),
    "test_gateway_health": ("test_a_check_follows_the_clusters_readiness",),
    "test_gateway_http": (
        "test_a_client_that_goes_cancels_its_request",
        "test_a_failure_has_its_status_and_a_reason",
        "test_binary_goes_in_and_comes_out_as_each_output_asks",
        "test_json_goes_in_and_comes_out",
        "test_versions_and_names_are_part_of_the_path",
        "test_what_is_wrong_with_a_request_is_said",
    ),
    "test_gateway_security": (
        "test_tls_and_a_token_on_both_servers",
        "test_without_the_token_only_health_answers",
    ),
    "test_inflow": ("test_messages_that_are_kept_end_no_connection",),
    "test_liars": ("test_one_odd_answer_is_forgiven_and_asked_for_again",),
    "test_metrics": (
        "test_requests_are_counted_by_what_became_of_them",
        "test_the_command_prints_text_that_prometheus_reads",
    ),
    "test_model_repository": ("test_models_come_change_and_go_as_their_files_do",),
    "test_old_stores": ("test_a_cluster_serves_from_them",),
    "test_plain_client": ("test_nothing_compiled_is_imported_then",),
    "test_policy_live": ("test_it_serves_and_its_decisions_are_had_again",),
    "test_preparations": ("test_a_failed_preparation_is_tried_again_by_itself_and_when_asked",),
    "test_recorder": ("test_a_dump_is_replayed_and_listed",),
    "test_releases": (
        "test_a_share_is_exact_and_all_of_it_goes_over_and_back_at_once",
        "test_the_shadow_answers_beside_the_one_that_serves_and_is_compared",
    ),
    "test_roles": ("test_a_revoked_workers_connection_ends_and_its_work_is_anothers",),
    "test_seats": ("test_the_idlest_client_gives_way_to_a_newcomer",),
    "test_set_aside": ("test_a_model_that_is_set_aside_says_so_everywhere_and_serves_again_when_told",),
    "test_shared_memory": ("test_answers_are_those_of_tensors_that_are_sent",),
    "test_up_restarts": ("test_every_process_is_started_again_and_the_others_go_on",),
    "test_worker": (
        "test_a_model_is_fetched_prepared_loaded_run_and_unloaded",
        "test_a_revoked_action_is_cancelled",
        "test_a_signal_drains_what_the_worker_holds",
        "test_a_worker_that_starts_again_finds_its_models",
        "test_an_action_waits_for_its_window",
        "test_an_action_whose_window_has_closed_is_too_late_and_does_nothing",
    ),
}
"""For each file of tests/process, the names of its stories, in alphabetical order."""
