"""What runs by the clock or once: garbage collection, purge of the audit log, scan of all."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from tests.harbor_double.accounts import need_login, need_system, user_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    bad_request,
    broken,
    conflict,
    not_found,
    operation,
    precondition,
)
from tests.harbor_double.state import NEVER, State, written

_FIELDS = 6
_WORKERS = 10


def check_cron(cron: str, what: str) -> None:
    """Raise Refused in Harbor's words for what is no cron text of six fields."""
    parts = cron.split()
    if not cron:
        why = "empty cron string is invalid"
    elif len(parts) != _FIELDS:
        why = f"expected exactly 6 fields, found {len(parts)}: [{cron}]"
    elif parts[0] != "0":
        why = "the 1st field (indicating Seconds of time) of the cron setting must be 0"
    else:
        return
    raise bad_request(f"invalid cron string for scheduled {what}: {cron}, error: {why}")


def next_time(cron: str, now: datetime) -> str:
    """When it runs next; for ``0 MINUTE HOUR * * *``, which is what tests use."""
    _, minute, hour = cron.split()[:3]
    if not (minute.isdigit() and hour.isdigit()):
        return NEVER
    moment = now.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
    return written(moment if moment > now else moment + timedelta(days=1))


_KINDS = {
    "gc": ("GARBAGE_COLLECTION", "gc", "garbage-collection"),
    "purgeaudit": ("PURGE_AUDIT_LOG", "log rotation purge", "purge-audit"),
}
_PURGE = ("audit_retention_hour", "dry_run", "include_event_types")


def _parameters(kind: str, body: Document, *, manual: bool) -> Document:
    given = body.get("parameters") or {}
    if kind == "purgeaudit":
        if not given:
            raise bad_request("bad request: schedule parameter cann't be empty")
        return {key: given[key] for key in _PURGE if key in given}
    workers = given.get("workers", 0)
    if workers > _WORKERS:
        raise bad_request(
            f"Error: Invalid number of workers:{workers}. Workers must be greater than 0 and less "
            "than or equal to 10."
        )
    kept: Document = {"delete_untagged": given.get("delete_untagged", False)}
    if manual:
        kept |= {
            "dry_run": given.get("dry_run", False),
            "redis_url_reg": "redis://harbor-redis:6379/2?idle_timeout_seconds=30",
            "time_window": 2,
        }
    return kept | {"workers": workers}


def _kind(call: Call) -> str:
    return "purgeaudit" if "Purge" in call.operation else "gc"


@operation("createGCSchedule", "createPurgeSchedule", "updateGCSchedule", "updatePurgeSchedule")
def set_schedule(call: Call) -> Answer:
    kind = _kind(call)
    vendor, words, resource = _KINDS[kind]
    create = call.operation.startswith("create")
    need_system(call, resource, "create" if create else "update")
    state, schedule = call.state, call.body.get("schedule") or {}
    how, cron = schedule.get("type", "None"), schedule.get("cron", "")
    number = 0
    if how == "Manual":
        parameters = _parameters(kind, call.body, manual=True)
        number = state.execution(vendor, parameters=parameters)["id"]
    else:
        if how != "None":
            check_cron(cron, words)
            parameters = _parameters(kind, call.body, manual=False)
        if old := state.schedule_of(vendor):
            del state.schedules[old["id"]]
        if how != "None":
            stamp = state.stamp()
            state.add_schedule(
                vendor, cron, -1, type=how, parameters=parameters, creation_time=stamp
            )
    if "jobservice" in state.down and how != "None":
        raise broken()  # and stored all the same
    if create:
        return Answer(201, headers={"Location": f"/api/v2.0/system/{kind}/{number}"})
    return Answer()


@operation("getGCSchedule", "getPurgeSchedule")
def get_schedule(call: Call) -> Answer:
    vendor, _, resource = _KINDS[_kind(call)]
    need_system(call, resource, "read")
    found = call.state.schedule_of(vendor)
    if found is None:
        return Answer(200, content_type="application/json")  # no body: not JSON
    return Answer(
        200,
        {
            "creation_time": found["creation_time"],
            "id": found["id"],
            "job_kind": found["cron"],
            "job_parameters": json.dumps(found["parameters"], separators=(",", ":")),
            "job_status": "Running",
            "schedule": {
                "cron": found["cron"],
                "next_scheduled_time": next_time(found["cron"], call.state.now()),
                "type": found["type"],
            },
            "update_time": found["update_time"],
        },
    )


def _history(state: State, execution: Document) -> Document:
    phase = state.phase(execution["started"])
    done = phase == "Success"
    parameters = dict(execution["parameters"])
    if done and execution["kind"] == "GARBAGE_COLLECTION":
        parameters |= {"freed_space": 0, "purged_blobs": 0, "purged_manifests": 0}
    begun = written(execution["begun"])
    return {
        "creation_time": begun,
        "id": execution["id"],
        "job_kind": "MANUAL",
        "job_name": execution["kind"],
        "job_parameters": json.dumps(parameters, sort_keys=True, separators=(",", ":")),
        "job_status": "Success" if done else "Running",
        "schedule": {"next_scheduled_time": NEVER, "type": "Manual"},
        "update_time": written(state.ended(execution)) if done else begun,
    }


@operation("getGCHistory", "getPurgeHistory")
def history(call: Call) -> Answer:
    vendor, _, resource = _KINDS[_kind(call)]
    need_system(call, resource, "list")
    jobs = [one for one in call.state.executions.values() if one["kind"] == vendor]
    return call.page([_history(call.state, one) for one in reversed(jobs)])


def _job(call: Call, action: str) -> Document:
    vendor, _, resource = _KINDS[_kind(call)]
    need_system(call, resource, action)
    number = call.number("purge_id" if _kind(call) == "purgeaudit" else "gc_id")
    found = call.state.executions.get(number)
    if found is None or found["kind"] != vendor:
        what = "purge audit" if _kind(call) == "purgeaudit" else "garbage collection"
        raise not_found(f"{what} execution {number} not found")
    return found


@operation("getGC", "getPurgeJob")
def get_job(call: Call) -> Answer:
    return Answer(200, _history(call.state, _job(call, "read")))


@operation("stopGC", "stopPurge")
def stop_job(call: Call) -> Answer:
    _job(call, "stop")
    return Answer()


@operation("getGCLog", "getPurgeJobLog")
def job_log(call: Call) -> Answer:
    job = _job(call, "read")
    lines = f"{written(job['begun'])} [INFO] {job['kind']} parameters: {job['parameters']}\n"
    return Answer(200, text=lines, content_type="text/plain")


@operation("listSchedules")
def list_schedules(call: Call) -> Answer:
    need_system(call, "jobservice-monitor", "list")
    keys = ("cron", "id", "update_time", "vendor_id", "vendor_type")
    rows = [
        {key: one[key] for key in keys if one[key] is not None}
        for one in call.state.schedules.values()
        if one["vendor_type"] != "SCAN_ALL" or one["vendor_id"] is not None
    ]
    return call.page(rows)


@operation("getSchedulePaused")
def paused(call: Call) -> Answer:
    need_login(call)
    return Answer(200, {"paused": False})


_ALL = "SCAN_ALL"


@operation("getScanAllSchedule")
def scan_all_schedule(call: Call) -> Answer:
    need_system(call, "scan-all", "read")
    found = call.state.schedule_of(_ALL, 0)
    if found is None:
        return Answer(200, content_type="application/json")
    return Answer(
        200,
        {
            "creation_time": found["creation_time"],
            "id": found["id"],
            "schedule": {
                "cron": found["cron"], "next_scheduled_time": NEVER, "type": found["type"],
            },
            "status": "Running",
            "update_time": found["update_time"],
        },
    )  # fmt: skip


@operation("createScanAllSchedule", "updateScanAllSchedule")
def set_scan_all(call: Call) -> Answer:
    from tests.harbor_double.scanning import scan_everything  # noqa: PLC0415  a circle

    create = call.operation.startswith("create")
    need_system(call, "scan-all", "create" if create else "update")
    state, schedule = call.state, call.body.get("schedule") or {}
    how, cron = schedule.get("type", "None"), schedule.get("cron", "")
    status = 201 if create else 200
    old = state.schedule_of(_ALL, 0)
    if how == "Manual":
        running = [
            one
            for one in state.executions.values()
            if one["kind"] == _ALL and state.phase(one["started"]) != "Success"
        ]
        if running:
            raise conflict("a previous scan all job aleady exits, its status is Running")
        scan_everything(state)
        return Answer(status)
    if how == "None":
        if old:
            del state.schedules[old["id"]]
        return Answer(status)
    check_cron(cron, "scan all")
    if old and create:
        raise precondition(
            "fail to set schedule for scan all as always had one, please delete it firstly then "
            "to re-schedule"
        )
    if old:
        del state.schedules[old["id"]]
    state.add_schedule(_ALL, cron, 0, type=how, creation_time=state.stamp())
    return Answer(status)


@operation("stopScanAll")
def stop_scan_all(call: Call) -> Answer:
    need_system(call, "scan-all", "stop")
    return Answer(202)


@operation("getLatestScanAllMetrics")
def scan_all_metrics(call: Call) -> Answer:
    need_system(call, "scan-all", "read")
    runs = [one for one in call.state.executions.values() if one["kind"] == _ALL]
    if not runs:
        return Answer(200, {"completed": 0, "ongoing": False, "total": 0})
    run, state = runs[-1], call.state
    phase = state.phase(run["started"])
    count = run["scanned"] if phase != "Pending" else 0
    numbers = dict.fromkeys(("Error", "Pending", "Running", "Stopped", "Success"), 0)
    numbers["Success"] = count
    document = {
        "completed": count, "metrics": numbers, "ongoing": phase != "Success", "total": count,
        "trigger": "Manual",
    }  # fmt: skip
    return Answer(200, document)


@operation("getLatestScheduledScanAllMetrics")
def scheduled_metrics(call: Call) -> Answer:
    need_system(call, "scan-all", "read")
    return Answer(200, {"completed": 0, "ongoing": False, "total": 0})


@operation("exportScanData")
def export(call: Call) -> Answer:
    need_login(call)
    job = call.state.execution("SCAN_DATA_EXPORT", user=user_of(call))
    return Answer(200, {"id": job["id"]})


def _export(state: State, job: Document) -> Document:
    phase = state.phase(job["started"])
    done = phase == "Success"
    return {
        "end_time": written(state.ended(job)) if done else NEVER,
        "file_present": True,
        "id": job["id"],
        "start_time": written(job["begun"]),
        "status": "Success" if done else "Running",
        "status_text": "",
        "trigger": "MANUAL",
        "user_id": job["user"],
        "user_name": state.users[job["user"]]["username"],
    }


@operation("getScanDataExportExecutionList")
def exports(call: Call) -> Answer:
    need_login(call)
    state = call.state
    jobs = [one for one in state.executions.values() if one["kind"] == "SCAN_DATA_EXPORT"]
    return Answer(200, {"items": [_export(state, one) for one in jobs]})


@operation("downloadScanData")
def download(call: Call) -> Answer:
    need_login(call)
    number = call.number("execution_id")
    job = call.state.executions.get(number)
    if job is None or job["kind"] != "SCAN_DATA_EXPORT":
        raise not_found(f"execution {number} not found")
    del call.state.executions[number]  # one download, then it is gone
    from tests.harbor_double.scanning import findings_table  # noqa: PLC0415  a circle

    name = f"scandata_export_{number}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Answer(200, text=findings_table(call.state), headers=headers, content_type="text/csv")
