/*
 * redis_scripts: what the store does in Redis, each atomically. PREFIX stands before all keys:
 *   PREFIX:s:NAME  hash: n, turns, created, touched, hash, model; fence, owner while somebody has it open; retired
 *   PREFIX:t:NAME  its token IDs
 *   PREFIX:e:ID    there as long as the engine ID lives: it expires unless that renews it
 *   PREFIX:fence   the last fence; PREFIX:bytes: what all sequences count for
 *   PREFIX:names   sorted set of all names, in the order of their bytes
 *   PREFIX:used    sorted set of all names by time; PREFIX:marks: of those that were retired
 * Redis' clock is the only one. Numbers travel as text; a script answers with a list whose first element is a word.
 */
#ifndef PERCH_ENGINE_STORE_REDIS_SCRIPTS_H
#define PERCH_ENGINE_STORE_REDIS_SCRIPTS_H

#define SCRIPT_BEGIN                                                                                                   \
    "local p, me, lease = ARGV[1], ARGV[2], ARGV[3]\n"                                                                 \
    "local t = redis.call('TIME')\n"                                                                                   \
    "local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))\n"                                       \
    "local function alive(owner) return owner and owner ~= '' and redis.call('EXISTS', p .. ':e:' .. owner) == 1 "     \
    "end\n"                                                                                                            \
    "local function live() redis.call('SET', p .. ':e:' .. me, '1', 'PX', lease) end\n"

#define SCRIPT_NAMED                                                                                                   \
    SCRIPT_BEGIN                                                                                                       \
    "local name = ARGV[4]\n"                                                                                           \
    "local s, tokens = p .. ':s:' .. name, p .. ':t:' .. name\n"                                                       \
    "local function create(fence)\n"                                                                                   \
    "  redis.call('HSET', s, 'fence', fence, 'owner', me, 'n', 0, 'turns', 0, 'created', now, 'touched', now,\n"       \
    "             'hash', ARGV[5], 'model', '')\n"                                                                     \
    "  redis.call('ZADD', p .. ':names', 0, name)\n"                                                                   \
    "  redis.call('ZADD', p .. ':used', now, name)\n"                                                                  \
    "  redis.call('INCRBY', p .. ':bytes', 512)\n"                                                                     \
    "end\n"

/* ARGV: prefix, engine, lease_ms, name, hash of no tokens, existing */
static const char script_acquire[] =
    SCRIPT_NAMED "local r = redis.call('HMGET', s, 'n', 'owner', 'retired')\n"
                 "if r[3] then return {'retired'} end\n"
                 "if not r[1] and ARGV[6] == '1' then return {'absent'} end\n"
                 "if r[2] ~= me and alive(r[2]) then\n"
                 "  return {'leased', tostring(redis.call('PTTL', p .. ':e:' .. r[2]))}\n"
                 "end\n"
                 "local fence = tostring(redis.call('INCR', p .. ':fence'))\n"
                 "live()\n"
                 "if r[1] then redis.call('HSET', s, 'fence', fence, 'owner', me) else create(fence) end\n"
                 "r = redis.call('HMGET', s, 'n', 'turns', 'created', 'touched', 'hash', 'model')\n"
                 "return {'ok', fence, r[1], r[2], r[3], r[4], r[5], r[6], redis.call('GET', tokens) or ''}\n";

/* ARGV: prefix, engine, lease_ms, name, hash, what, fence, release, keep, n, turns, created, touched, model, token IDs */
static const char script_write[] = SCRIPT_NAMED
    "local what, fence, keep, n = ARGV[6], ARGV[7], tonumber(ARGV[9]), tonumber(ARGV[10])\n"
    "local r = redis.call('HMGET', s, 'n', 'owner', 'retired', 'fence')\n"
    "if what == 'put' and fence == '0' then\n"
    "  if r[1] and r[2] ~= me then return {'leased'} end\n"
    "  if keep > tonumber(r[1] or 0) then return {'gap'} end\n"
    "  fence = tostring(redis.call('INCR', p .. ':fence'))\n"
    "  live()\n"
    "  if r[1] then redis.call('HSET', s, 'fence', fence) else create(fence) end\n"
    "elseif what == 'remove' and fence == '0' then\n"
    "  if not r[1] then return {'absent'} end\n"
    "  if r[2] == me then return {'busy'} end\n"
    "  if alive(r[2]) then return {'leased'} end\n"
    "elseif r[3] then return {'retired'}\n"
    "elseif not r[1] then return {'absent'}\n"
    "elseif r[4] ~= fence then return {'leased'}\n"
    "elseif what == 'put' and keep > tonumber(r[1]) then return {'gap'} end\n"
    "local had = tonumber(r[1] or 0)\n"
    "if what == 'remove' then\n"
    "  redis.call('DEL', s, tokens)\n"
    "  for _, set in ipairs({':names', ':used', ':marks'}) do redis.call('ZREM', p .. set, name) end\n"
    "  if not r[3] then redis.call('DECRBY', p .. ':bytes', 512 + 4 * had) end\n"
    "  return {'ok', fence}\n"
    "end\n"
    "if what == 'put' then\n"
    "  if keep == 0 then redis.call('DEL', tokens)\n"
    "  elseif keep < had then redis.call('SET', tokens, redis.call('GETRANGE', tokens, 0, 4 * keep - 1)) end\n"
    "  if n > keep then redis.call('APPEND', tokens, ARGV[15]) end\n"
    "  redis.call('HSET', s, 'n', n, 'turns', ARGV[11], 'created', ARGV[12], 'touched', ARGV[13], 'hash', ARGV[5],\n"
    "             'model', ARGV[14])\n"
    "  redis.call('INCRBY', p .. ':bytes', 4 * (n - had))\n"
    "end\n"
    "if what == 'release' or ARGV[8] == '1' then redis.call('HDEL', s, 'owner', 'fence') end\n"
    "redis.call('ZADD', p .. ':used', now, name)\n"
    "return {'ok', fence}\n";

/* ARGV: prefix, engine, lease_ms, the name behind which to begin, how many */
static const char script_list[] = SCRIPT_BEGIN
    "local after = ARGV[4] == '' and '-' or '(' .. ARGV[4]\n"
    "local out = {'ok'}\n"
    "for _, name in ipairs(redis.call('ZRANGEBYLEX', p .. ':names', after, '+', 'LIMIT', 0, ARGV[5])) do\n"
    "  local r = redis.call('HMGET', p .. ':s:' .. name, 'n', 'turns', 'created', 'touched', 'owner')\n"
    "  for _, v in ipairs({name, r[1] or '0', r[2] or '0', r[3] or '0', r[4] or '0', alive(r[5]) and '1' or '0'}) do\n"
    "    out[#out + 1] = v\n"
    "  end\n"
    "end\n"
    "return out\n";

/* ARGV: prefix, engine, lease_ms, max_bytes, ttl_ms, how long marks stay. Those in use have their turn once more. */
static const char script_tend[] = SCRIPT_BEGIN
    "live()\n"
    "local most, ttl, retired = tonumber(ARGV[4]), tonumber(ARGV[5]), 0\n"
    "for _ = 1, 64 do\n"
    "  local x = redis.call('ZRANGE', p .. ':used', 0, 0, 'WITHSCORES')\n"
    "  local over = most > 0 and tonumber(redis.call('GET', p .. ':bytes') or 0) > most\n"
    "  if not x[1] or not (over or (ttl > 0 and now - x[2] >= ttl)) then break end\n"
    "  local s = p .. ':s:' .. x[1]\n"
    "  local r = redis.call('HMGET', s, 'n', 'owner')\n"
    "  if alive(r[2]) then redis.call('ZADD', p .. ':used', now, x[1])\n"
    "  else\n"
    "    redis.call('DEL', s, p .. ':t:' .. x[1])\n"
    "    redis.call('HSET', s, 'n', 0, 'retired', 1)\n"
    "    redis.call('ZREM', p .. ':used', x[1])\n"
    "    redis.call('ZREM', p .. ':names', x[1])\n"
    "    redis.call('ZADD', p .. ':marks', now, x[1])\n"
    "    redis.call('DECRBY', p .. ':bytes', 512 + 4 * tonumber(r[1] or 0))\n"
    "    retired = retired + 1\n"
    "  end\n"
    "end\n"
    "for _, name in ipairs(redis.call('ZRANGEBYSCORE', p .. ':marks', '-inf', now - ARGV[6], 'LIMIT', 0, 64)) do\n"
    "  redis.call('DEL', p .. ':s:' .. name)\n"
    "  redis.call('ZREM', p .. ':marks', name)\n"
    "end\n"
    "return {'ok', tostring(retired)}\n";

/* ARGV: prefix, engine, lease_ms. The engine goes: whoever waits for what it had may have it. */
static const char script_leave[] = SCRIPT_BEGIN "redis.call('DEL', p .. ':e:' .. me)\n"
                                                "return {'ok'}\n";

#endif
