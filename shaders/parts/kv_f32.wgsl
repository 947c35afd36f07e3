// Cached keys and values in f32.
alias KvStored = vec2<f32>;  // a pair of values
const KV_PAIRS = 1u;
const KV_WORDS = 1u;
const KV_BLOCK = OCTS;

struct KvOct {               // eight neighbouring values
    low: vec4<f32>,
    high: vec4<f32>,
}

fn kv_pack(pairs: array<vec2<f32>, KV_PAIRS>) -> array<KvStored, KV_WORDS> {
    return array<KvStored, KV_WORDS>(pairs[0]);
}

fn kv_words(unit: u32) -> u32 { return KV_WORDS; }

fn kv_place(head: u32, j: u32, unit: u32, i: u32) -> u32 { return (head * PAGE + j) * OCTS * 4u + unit; }

fn kv_oct(head: u32, j: u32, o: u32) -> u32 { return (head * PAGE + j) * OCTS + o; }

fn kv_factor(head: u32, j: u32, b: u32) -> u32 { return kv_oct(head, j, 0u); }

fn kv_scale(factor: KvOct, j: u32, b: u32) -> f32 { return 1.0; }

fn kv_low(q: KvOct, scale: f32) -> vec4<f32> { return q.low; }

fn kv_high(q: KvOct, scale: f32) -> vec4<f32> { return q.high; }
