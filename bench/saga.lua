-- wrk: posts sagas of two branches, each with a gid of its own, and checks every answer.
-- Arguments: a prefix that no other run uses, and the base URL of the participants.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  prefix, participants = args[1], args[2]
  posted, bad, first_bad = 0, 0, ""
  head = '{"gid":"' .. prefix
  tail = '","trans_type":"saga","wait_result":true,"steps":['
    .. '{"action":"' .. participants .. '/a","compensate":"' .. participants .. '/a-compensate"},'
    .. '{"action":"' .. participants .. '/b","compensate":"' .. participants .. '/b-compensate"}],'
    .. '"payloads":["{\\"account\\":1,\\"amount\\":30}","{\\"account\\":2,\\"amount\\":-30}"]}'
  headers = { ["Content-Type"] = "application/json" }
end

function request()
  posted = posted + 1
  return wrk.format("POST", wrk.path, headers, head .. posted .. tail)
end

function response(status, _, body)
  if status ~= 200 or not string.find(body, '"SUCCESS"', 1, true) then
    bad = bad + 1
    if bad == 1 then
      first_bad = status .. " " .. string.sub(string.gsub(body, "%s+", " "), 1, 300)
    end
  end
end

function done(summary, latency, _)
  local bad, first_bad = 0, ""
  for _, thread in ipairs(threads) do
    bad = bad + thread:get("bad")
    if first_bad == "" then first_bad = thread:get("first_bad") end
  end
  local errors = summary.errors
  print(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"bad":%d,"broken":%d,"timed_out":%d,'
      .. '"mean_us":%.1f,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d}',
    summary.requests, summary.duration, bad, errors.connect + errors.read + errors.write, errors.timeout,
    latency.mean, latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
  if first_bad ~= "" then print("FIRST_BAD " .. first_bad) end
end
