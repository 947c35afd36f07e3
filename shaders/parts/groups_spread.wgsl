// Groups: neighbouring lanes read neighbouring vectors, of as many groups as there are lanes, for formats without
// scales of groups. Lanes with a group of their own would read 16 bytes every 128 in f32, half of what a GPU fetches
// for them, and hope that the other half is still there when its turn comes.
// Vectors of activations for one of weights.
const QUADS = 8u / VECTORS;
// Vectors of weights that are under way while activations are brought.
const AHEAD = 2u;

struct Blocks {
    at: u32,  // the turn's first vector of the row, among those of the shard
    ahead: array<vec4<u32>, AHEAD>,
}

// Vector `n` of a lane, of those from `at` on: beyond a row's last the last one, whose activations are zeros.
fn vector(at: u32, n: u32, turn: Turn) -> vec4<u32> {
    return w[at + min(n * turn.lanes + turn.index, (p.groups - turn.first) * VECTORS - 1u)];
}

// What a lane loads of a row for a turn, to begin with.
fn blocks(row: u32, turn: Turn) -> Blocks {
    var b: Blocks;
    b.at = block_at(row, turn.first) * VECTORS;
    for (var n = 0u; n < AHEAD; n++) {
        b.ahead[n] = vector(b.at, n, turn);
    }
    return b;
}

// Where activations for vectors' weights 4 i .. 4 i + 3 begin: as far from the banks of those before as these reach.
fn part_at(i: u32, lanes: u32) -> u32 { return i * VECTORS * (lanes + 1u); }

// Where vector `i` of a turn's activations lies in workgroup memory, for teams of `lanes`.
fn place(i: u32, lanes: u32) -> u32 { return part_at(i % QUADS, lanes) + i / QUADS; }

// What a lane contributes to the sums of four rows in a turn.
fn add_groups(blocks: ptr<function, array<Blocks, 4>>, turn: Turn, before: vec4<f32>) -> vec4<f32> {
    var sums = vec4<f32>(0.0);
    for (var n = 0u; n < VECTORS; n++) {
        var x: array<vec4<f32>, QUADS>;
        for (var i = 0u; i < QUADS; i++) {
            x[i] = staged[part_at(i, turn.lanes) + n * turn.lanes + turn.index];
        }
        for (var r = 0u; r < 4u; r++) {
            var v = (*blocks)[r].ahead[n % AHEAD];
            if (n >= AHEAD) {
                v = vector((*blocks)[r].at, n, turn);
            }
            for (var i = 0u; i < QUADS; i++) {
                sums[r] += dot(floats(v, i), x[i]);
            }
        }
    }
    return before + UNIT * sums;
}
