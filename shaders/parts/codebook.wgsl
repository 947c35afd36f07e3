// Codebook: what four nibbles, one in each byte, stand for in a table of sixteen signed bytes.
fn looked_up(nibbles: u32, table: vec4<u32>) -> vec4<f32> {
    let n = (vec4<u32>(nibbles) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u);
    let odd = (n & vec4<u32>(4u)) != vec4<u32>(0u);
    let low = select(vec4<u32>(table.x), vec4<u32>(table.y), odd);
    let high = select(vec4<u32>(table.z), vec4<u32>(table.w), odd);
    let four = select(low, high, n >= vec4<u32>(8u));
    return vec4<f32>(bitcast<vec4<i32>>(four << (24u - 8u * (n % 4u))) >> vec4<u32>(24u));
}
