// Cached keys and values in f16, packed into words so that no f16 support is needed.
alias KvStored = u32;     // a pair of values
alias KvOct = vec4<u32>;  // eight neighbouring values
const KV_PAIRS = 1u;
const KV_WORDS = 1u;
const KV_BLOCK = OCTS;

// Values beyond the range of f16 become its largest, never infinity. What is no number stays none,
// and is not made one by a clamp: whoever attends to it has to notice.
fn kv_pack(pairs: array<vec2<f32>, KV_PAIRS>) -> array<KvStored, KV_WORDS> {
    let word = pack2x16float(clamp(pairs[0], vec2<f32>(-65504.0), vec2<f32>(65504.0)));
    let bits = bitcast<vec2<u32>>(pairs[0]) & vec2<u32>(0x7f800000u);
    let none = max(bits.x, bits.y) == 0x7f800000u;
    return array<KvStored, KV_WORDS>(word | select(0u, 0x7e007e00u, none));
}

fn kv_words(unit: u32) -> u32 { return KV_WORDS; }

fn kv_place(head: u32, j: u32, unit: u32, i: u32) -> u32 { return (head * PAGE + j) * OCTS * 4u + unit; }

fn kv_oct(head: u32, j: u32, o: u32) -> u32 { return (head * PAGE + j) * OCTS + o; }

fn kv_factor(head: u32, j: u32, b: u32) -> u32 { return kv_oct(head, j, 0u); }

fn kv_scale(factor: KvOct, j: u32, b: u32) -> f32 { return 1.0; }

fn kv_low(q: KvOct, scale: f32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y));
}

fn kv_high(q: KvOct, scale: f32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(q.z), unpack2x16float(q.w));
}
