// Groups: a lane takes two neighbours at a time, for formats of which a vector of quants holds two groups, so that
// they share all loads. Activations are read half a group at a time, each for all rows, so that few registers
// hold them.
const SIDE = 2u;

alias Blocks = array<Block, 2>;

// The blocks of the groups from the one that lies at `at`, the first of a pair.
fn blocks(at: u32) -> Blocks { return pair(at / 2u); }

// What half `n` of the four in a pair contributes.
fn add_half(blocks: ptr<function, array<Blocks, 4>>, n: u32, at: u32, before: vec4<f32>) -> vec4<f32> {
    var v: array<vec4<f32>, 4>;
    var x = 0.0;
    var lifted_x = 0.0;
    for (var i = 0u; i < 4u; i++) {
        v[i] = staged[at + 4u * n + i];
        let sum = v[i].x + v[i].y + v[i].z + v[i].w;
        x += sum;
        if (LIFTS) {
            lifted_x += lift(i) * sum;
        }
    }
    var sums = before;
    for (var r = 0u; r < 4u; r++) {
        var qx = 0.0;
        for (var i = 0u; i < 4u; i++) {
            let q = lifted((*blocks)[r][n / 2u], n % 2u * 4u + i);
            qx = fma(q.w, v[i].w, fma(q.z, v[i].z, fma(q.y, v[i].y, fma(q.x, v[i].x, qx))));
        }
        if (LIFTS) {
            qx -= lifted_x;
        }
        sums[r] += weigh_half((*blocks)[r][n / 2u], n % 2u, qx, x);
    }
    return sums;
}

// What groups `g` and its neighbour, whose activations are at `at` in workgroup memory, contribute to the sums of
// four rows. The halves are written out, so that compilers choose the words of blocks by constants.
fn add_groups(blocks: ptr<function, array<Blocks, 4>>, at: u32, g: u32, before: vec4<f32>) -> vec4<f32> {
    let one = add_half(blocks, 0u, at, before);
    let two = add_half(blocks, 1u, at, one);
    return add_half(blocks, 3u, at, add_half(blocks, 2u, at, two));
}
