// Cached keys and values in f32.
alias KvPair = vec2<f32>;  // two neighbouring values
struct KvOct {             // eight neighbouring values
    low: vec4<f32>,
    high: vec4<f32>,
}

fn kv_pack(v: vec2<f32>) -> KvPair { return v; }

fn kv_low(o: KvOct) -> vec4<f32> { return o.low; }

fn kv_high(o: KvOct) -> vec4<f32> { return o.high; }
