// Groups: a lane takes one at a time, for formats whose halves have scales of their own. Activations are read half a group
// at a time, each for all rows, so that few registers hold them.
alias Blocks = Block;

// What a lane loads of a row for a turn: beyond the last group the last one, whose activations are zeros.
fn blocks(row: u32, turn: Turn) -> Blocks {
    let k = min(turn.first + turn.index, p.groups - 1u);
    return block(block_at(row, k), k);
}

// Where vector `i` of a turn's activations lies in workgroup memory, for teams of `lanes`.
fn place(i: u32, lanes: u32) -> u32 { return i / 8u * PITCH + i % 8u; }

// What a half of the group adds to the sums of four rows, each of two kinds.
fn add_half(blocks: ptr<function, array<Blocks, 4>>, half: u32, turn: Turn, sums: ptr<function, array<vec2<f32>, 4>>) {
    var v: array<vec4<f32>, 4>;
    var x = 0.0;
    var lifted_x = 0.0;
    for (var i = 0u; i < 4u; i++) {
        v[i] = staged[turn.index * PITCH + 4u * half + i];
    }
    if (HAS_MIN) {
        let at = turn.index * SUMS + 4u * half;
        let even = staged_sums[at] + staged_sums[at + 2u];
        let odd = staged_sums[at + 1u] + staged_sums[at + 3u];
        x = even + odd;
        lifted_x = lift(0u) * even + lift(1u) * odd;
    }
    for (var r = 0u; r < 4u; r++) {
        var qx = 0.0;
        for (var i = 0u; i < 4u; i++) {
            let q = lifted((*blocks)[r], 4u * half + i);
            qx = fma(q.w, v[i].w, fma(q.z, v[i].z, fma(q.y, v[i].y, fma(q.x, v[i].x, qx))));
        }
        if (LIFTS) {
            qx -= lifted_x;
        }
        (*sums)[r] += weigh_half((*blocks)[r], half, qx, x);
    }
}

// What a lane contributes to the sums of four rows in a turn. The halves are written out, so that compilers choose the
// words of blocks by constants.
fn add_groups(blocks: ptr<function, array<Blocks, 4>>, turn: Turn, before: vec4<f32>) -> vec4<f32> {
    if (!comes_along(turn.first + turn.index)) {
        return before;
    }
    var sums: array<vec2<f32>, 4>;
    add_half(blocks, 0u, turn, &sums);
    add_half(blocks, 1u, turn, &sums);
    var after = before;
    for (var r = 0u; r < 4u; r++) {
        after[r] += weigh_halves((*blocks)[r], sums[r]);
    }
    return after;
}
