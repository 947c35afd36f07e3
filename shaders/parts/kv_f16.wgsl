// Cached keys and values in f16, packed into words so that no f16 support is needed.
alias KvPair = u32;       // two neighbouring values
alias KvOct = vec4<u32>;  // eight neighbouring values

// Values beyond the range of f16 become its largest, never infinity.
fn kv_pack(v: vec2<f32>) -> KvPair {
    return pack2x16float(clamp(v, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
}

fn kv_low(o: KvOct) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(o.x), unpack2x16float(o.y));
}

fn kv_high(o: KvOct) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(o.z), unpack2x16float(o.w));
}
