# Sourced by the other scripts: run a long command with its output in a file, and a line here every 5 seconds; and
# end with a message.

fail() { # line of the message...
  printf '%s\n' "${@/#/$(basename "$0" .sh): }" >&2
  exit 1
}

fail_with_log() { # log, line of the message...
  tail -n 20 "$1" >&2
  fail "${@:2}"
}

# with_heartbeat LABEL LOG PROGRESS COMMAND...
#   PROGRESS is a function that prints how far the command is; `:` for none. The exit code is the command's.
#   Interrupting or terminating the script ends the command, waits for it, and ends whatever it left in its group.
with_heartbeat() {
  local label="$1" log="$2" progress="$3" started=$SECONDS next=5 status=0 pid far
  shift 3
  setsid "$@" >"$log" 2>&1 &
  pid=$!
  # SIGTERM, because a shell starts background commands deaf to SIGINT.
  trap 'stop_heartbeat_command "$pid"; exit 130' INT
  trap 'stop_heartbeat_command "$pid"; exit 143' TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - started >= next)); then
      next=$((SECONDS - started + 5))
      far="$("$progress")"
      printf '  %s: %d s%s\n' "$label" "$((SECONDS - started))" "${far:+, $far}"
    fi
  done
  wait "$pid" || status=$?
  trap - INT TERM
  return "$status"
}

stop_heartbeat_command() {
  kill -TERM "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
  kill -TERM -- "-$1" 2>/dev/null || true
}
