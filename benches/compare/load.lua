-- What wrk measured, as one line of words: requests, bytes, microseconds, errors, and the times of an answer in
-- microseconds that half and 99 of 100 answers kept to.
function done(summary, latency, _)
    local errors = summary.errors
    local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    print(string.format("measured %d %d %d %d %d %d", summary.requests, summary.bytes, summary.duration, bad,
        latency:percentile(50), latency:percentile(99)))
end
