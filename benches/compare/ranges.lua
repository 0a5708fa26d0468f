-- Ranges of so many bytes at random offsets of a blob, the same offsets for every server: `-- <bytes> <blob's bytes>`.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "load.lua")

local threads = 0

function setup(thread)
    threads = threads + 1
    thread:set("number", threads)
end

function init(args)
    math.randomseed(number)
    range, total = tonumber(args[1]), tonumber(args[2])
    head = "GET " .. wrk.path .. " HTTP/1.1\r\nHost: figures\r\nRange: bytes="
end

function request()
    local first = math.random(0, total - range)
    return head .. first .. "-" .. (first + range - 1) .. "\r\n\r\n"
end
