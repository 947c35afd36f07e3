// next[o] = (argmax_i v[o, i] + noise_i over the kept i, position + 1, sequence, 0)
//
// Grid   (1, n_outputs): one workgroup for an output.
// Links  step, lane_workgroup*, choice
//
// With Gumbel noise -log(-log u) the largest sum is a draw from the softmax of v (Gumbel 1954),
// so that a token is chosen without any sum in order. u comes from Threefry-2x32 with 20
// rounds (Salmon et al. 2011) of seed, position and id: no state, the same on every run.
//
// Top-k, top-p and min-p all keep what lies within some distance of the largest value. The
// distance is searched for in sixteenths, first among the largest values of the runs, which
// bounds it, then among the values of those runs that come near enough.
struct Params {
    vocab: u32,
    pitch: u32,  // of a row of v, in values
    runs: u32,   // value i belongs to run i % runs
}

@group(0) @binding(0) var<storage, read> v: array<f32>;                // [O, pitch]
@group(0) @binding(1) var<storage, read> tops: array<f32>;             // [O, runs]
@group(0) @binding(2) var<storage, read> choices: array<Choice>;       // [S]
@group(0) @binding(3) var<storage, read_write> counts: array<u32>;     // [S, vocab]
@group(0) @binding(4) var<storage, read_write> next: array<vec4<u32>>; // [O]
@group(0) @binding(5) var<uniform> p: Params;

const ROUNDS = 5u;  // 16^-5 of the first distance: values nearer than that are equals

fn rotate(x: u32, by: u32) -> u32 { return (x << by) | (x >> (32u - by)); }

fn threefry(seed: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let keys = vec3<u32>(seed, 0x1bd11bdau ^ seed.x ^ seed.y);
    let turns = array<vec4<u32>, 2>(vec4<u32>(13u, 15u, 26u, 6u), vec4<u32>(17u, 29u, 16u, 24u));
    var x = counter + seed;
    for (var i = 0u; i < 5u; i++) {
        for (var r = 0u; r < 4u; r++) {
            x.x += x.y;
            x.y = rotate(x.y, turns[i % 2u][r]) ^ x.x;
        }
        x += vec2<u32>(keys[(i + 1u) % 3u], keys[(i + 2u) % 3u] + i + 1u);
    }
    return x;
}

// Gumbel noise from 32 random bits; small exponentials, which win, keep all their precision.
fn noise(bits: u32) -> f32 {
    let u = (f32(bits) + 0.5) * 0x1p-32;
    let exponential = select(-log(max(1.0 - u, 0x1p-25)), u * (1.0 + u * (0.5 + u / 3.0)), u < 0.01);
    return -log(exponential);
}

// Sixteen distances, and what lies within each: a number of values, or their probability.
struct Amounts {
    bounds: array<vec4<f32>, 4>,
    within: array<vec4<f32>, 4>,
}

fn count_in(amounts: ptr<function, Amounts>, d: f32, by_mass: bool) {
    let amount = vec4<f32>(select(1.0, exp(-d), by_mass));
    for (var n = 0u; n < 4u; n++) {
        amounts.within[n] += select(vec4<f32>(0.0), amount, vec4<f32>(d) <= amounts.bounds[n]);
    }
}

// The distance within which the values of a row, or only the largest of each run, amount to
// `goal`; `limit` where they do not. A bound that was found to do is kept as it is: equals lie
// just on it.
fn reach(lane: Lane, o: u32, top: f32, goal: f32, limit: f32, by_mass: bool, whole: bool) -> f32 {
    var low = 0.0;
    var high = limit;
    for (var round = 0u; round < ROUNDS; round++) {
        var amounts: Amounts;
        for (var n = 0u; n < 4u; n++) {
            amounts.bounds[n] = low + (high - low) / 16.0 * (vec4<f32>(1.0, 2.0, 3.0, 4.0) + f32(4u * n));
        }
        amounts.bounds[3].w = high;
        for (var j = lane.index; j < p.runs; j += lane.count) {
            let nearest = top - tops[o * p.runs + j];
            if (nearest <= high) {
                if (whole) {
                    for (var i = j; i < p.vocab; i += p.runs) {
                        count_in(&amounts, top - v[o * p.pitch + i], by_mass);
                    }
                } else {
                    count_in(&amounts, nearest, by_mass);
                }
            }
        }
        var found = false;
        for (var n = 0u; n < 4u; n++) {
            let sums = sum_all4(lane, amounts.within[n]);
            for (var c = 0u; c < 4u; c++) {
                if (!found) {
                    found = sums[c] >= goal || (n == 3u && c == 3u);
                    if (found) {
                        high = amounts.bounds[n][c];
                    } else {
                        low = amounts.bounds[n][c];
                    }
                }
            }
        }
    }
    return high;
}

// Searches among the runs' largest values first, then within the bound that this gives.
fn distance(lane: Lane, o: u32, top: f32, goal: f32, limit: f32, by_mass: bool) -> f32 {
    let bound = reach(lane, o, top, goal, limit, by_mass, false);
    return reach(lane, o, top, goal, bound, by_mass, true);
}

// The probability, times that of the largest value, of all within `cut`.
fn mass(lane: Lane, o: u32, top: f32, cut: f32) -> f32 {
    var sum = 0.0;
    for (var j = lane.index; j < p.runs; j += lane.count) {
        if (top - tops[o * p.runs + j] <= cut) {
            for (var i = j; i < p.vocab; i += p.runs) {
                let d = top - v[o * p.pitch + i];
                sum += select(0.0, exp(-d), d <= cut);
            }
        }
    }
    return sum_all(lane, sum);
}

fn max_all(lane: Lane, v: f32) -> f32 { return max_all4(lane, vec4<f32>(v)).x; }

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let o = group.y;
    let token = output_token(o);
    let sequence = token_sequence(token);
    let position = token_position(token);
    let choice = choices[sequence];
    var largest = LOWEST;
    for (var j = lane.index; j < p.runs; j += lane.count) {
        largest = max(largest, tops[o * p.runs + j]);
    }
    let top = max_all(lane, largest);

    var cut = 0.0;
    if (by_chance(choice)) {
        cut = choice.cut;
        if (choice.top_k > 0u) {
            cut = distance(lane, o, top, f32(choice.top_k), cut, false);
        }
        if (choice.top_p < 1.0) {
            cut = distance(lane, o, top, choice.top_p * mass(lane, o, top, cut), cut, true);
        }
    }

    var best = LOWEST;
    var id = 0u;
    for (var j = lane.index; j < p.runs; j += lane.count) {
        if (top - tops[o * p.runs + j] <= cut) {
            for (var i = j; i < p.vocab; i += p.runs) {
                let d = top - v[o * p.pitch + i];
                if (d <= cut) {
                    var score = 0.0;
                    if (by_chance(choice)) {
                        score = noise(threefry(choice.seed, vec2<u32>(position, i)).x) - d;
                    }
                    // Of equals the lowest id.
                    if (score > best || (score == best && i < id)) {
                        best = score;
                        id = i;
                    }
                }
            }
        }
    }
    let winner = max_all(lane, best);
    // Ids are exact in f32: vocabularies are far below 2^24.
    let chosen = u32(-max_all(lane, select(-16777216.0, -f32(id), best == winner)));
    if (lane.index == 0u) {
        if (top == NOT_A_NUMBER) {
            next[o] = vec4<u32>(0xffffffffu, position + 1u, sequence, 0u);
        } else {
            next[o] = vec4<u32>(chosen, position + 1u, sequence, 0u);
            if (with_penalties(choice)) {
                counts[sequence * p.vocab + chosen] += 1u;
            }
        }
    }
}
