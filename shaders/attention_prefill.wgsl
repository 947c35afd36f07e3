// y[t, h, :] = sum_j softmax_j(scale q[t, h, :] . k[j, :]) v[j, :], j <= pos_t
//
// Grid   (kv_heads x blocks of HEADS query heads, 1, tiles of TOKENS tokens).
// Links  step, lane_workgroup, kv_*, span_whole, cap_*, pages_*
//
// As `attention`, for many tokens (Dao, FlashAttention-2): the rows of a tile are HEADS query
// heads of TOKENS neighbouring tokens, so that a key is read once for all of them. Rows are
// dealt out in fours to LANES invocations each. These score a page together, LANES keys apart;
// weights meet in workgroup memory, and each invocation owns every LANES-th group of eight
// outputs of its four rows. Tokens of several sequences in one tile are attended to one
// sequence after the other, with the others' rows masked. Nothing grows with the context.
struct Params {
    kv_heads: u32,
    group_heads: u32,  // query heads per KV head
    blocks: u32,       // ceil(group_heads / HEADS)
    head_dim: u32,
    scale: f32,
    q_pitch: u32,      // of a row of q, in values
    pitch: u32,        // of a row of y, in values
    width: u32,        // the part of a row of y that is not padding
    window: u32,       // positions that a token sees, the last ones with its own
    cap: f32,          // what no score exceeds, where there is a cap
    ring: u32,         // pages of a sequence, where they are used in turn
}

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;     // [T, heads, OCTS * 8]
@group(0) @binding(1) var<storage, read> k: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(2) var<storage, read> v: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;     // [T, heads, head_dim]
@group(0) @binding(4) var<uniform> p: Params;

const LOWEST = -3.0e38;
const LANES = 8u;                           // invocations that share four rows
const FOURS = WG / LANES;                   // groups of four rows
const TOKENS = FOURS * 4u / HEADS;          // of a tile
const KEYS = PAGE / LANES;                  // of a page, for an invocation
const ITEMS = (OCTS + LANES - 1u) / LANES;  // groups of eight outputs of an invocation

var<workgroup> weights: array<vec4<f32>, PAGE * FOURS>;  // of each key for four rows
var<workgroup> partial: array<vec4<f32>, WG>;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let kv_head = group.x / p.blocks;
    let first = group.x % p.blocks * HEADS;               // among the heads of this KV head
    let head = kv_head * p.group_heads + first;           // among all heads
    let heads = min(HEADS, p.group_heads - first);
    let start = group.z * TOKENS;
    let end = min(start + TOKENS, n_tokens());

    let four = lane.index / LANES;
    let part = lane.index % LANES;
    var token: array<u32, 4>;
    var row_head: array<u32, 4>;
    var query: array<u32, 4>;   // where a row's queries start
    var known: vec4<u32>;       // positions up to a row's own, 0 without a row
    var unseen: vec4<u32>;      // of those, before its window
    for (var r = 0u; r < 4u; r++) {
        let row = four * 4u + r;
        let here = row / HEADS < end - start && row % HEADS < heads;
        token[r] = select(start, start + row / HEADS, here);
        row_head[r] = head + select(0u, row % HEADS, here);
        query[r] = token[r] * p.q_pitch / 4u + row_head[r] * OCTS * 2u;
        known[r] = select(0u, token_position(token[r]) + 1u, here);
        unseen[r] = known[r] - min(known[r], p.window);
    }

    var low: array<vec4<f32>, 4 * ITEMS>;
    var high: array<vec4<f32>, 4 * ITEMS>;
    var top = vec4<f32>(LOWEST);
    var sum = vec4<f32>(0.0);
    var next_run = start;
    while (next_run < end) {
        // A run of tokens of one sequence.
        let run = next_run;
        let sequence = token_sequence(run);
        var count = 0u;
        var before = 0xffffffffu;  // the least that one of them does not see
        while (next_run < end && token_sequence(next_run) == sequence) {
            let own = token_position(next_run) + 1u;
            count = max(count, own);
            before = min(before, own - min(own, p.window));
            next_run++;
        }
        var visible: vec4<u32>;
        for (var r = 0u; r < 4u; r++) {
            visible[r] = select(0u, known[r] - unseen[r], token[r] >= run && token[r] < next_run);
        }
        for (var n = before / PAGE; n * PAGE < count; n++) {
            let page_head = layer_page(sequence, n) * p.kv_heads + kv_head;
            var score: array<vec4<f32>, KEYS>;
            var scale: array<f32, KEYS>;
            for (var o = 0u; o < OCTS; o++) {
                var q_low: array<vec4<f32>, 4>;
                var q_high: array<vec4<f32>, 4>;
                for (var r = 0u; r < 4u; r++) {
                    q_low[r] = q[query[r] + o * 2u];
                    q_high[r] = q[query[r] + o * 2u + 1u];
                }
                for (var i = 0u; i < KEYS; i++) {
                    let j = i * LANES + part;
                    if (o % KV_BLOCK == 0u) {
                        scale[i] = kv_scale(k[kv_factor(page_head, j, o / KV_BLOCK)], j, o / KV_BLOCK);
                    }
                    let key = k[kv_oct(page_head, j, o)];
                    let key_low = kv_low(key, scale[i]);
                    let key_high = kv_high(key, scale[i]);
                    for (var r = 0u; r < 4u; r++) {
                        score[i][r] += dot(q_low[r], key_low) + dot(q_high[r], key_high);
                    }
                }
            }
            var seen = top;
            for (var i = 0u; i < KEYS; i++) {
                // Before the window the difference wraps, beyond any number of positions.
                let mask = vec4<u32>(n * PAGE + i * LANES + part) - unseen < visible;
                let scaled = score[i] * p.scale;
                let bounded = vec4<f32>(capped(scaled.x), capped(scaled.y), capped(scaled.z), capped(scaled.w));
                score[i] = select(vec4<f32>(LOWEST), bounded, mask);
                seen = max(seen, score[i]);
            }
            partial[lane.index] = seen;
            workgroupBarrier();
            for (var i = 0u; i < LANES; i++) {
                seen = max(seen, partial[four * LANES + i]);
            }
            let shrink = exp(top - seen);
            top = seen;
            sum *= shrink;
            for (var i = 0u; i < KEYS; i++) {
                let j = i * LANES + part;
                let mask = vec4<u32>(n * PAGE + j) - unseen < visible;
                let weight = select(vec4<f32>(0.0), exp(score[i] - top), mask);
                sum += weight;
                weights[j * FOURS + four] = weight;
            }
            workgroupBarrier();
            for (var item = 0u; item < ITEMS; item++) {
                for (var r = 0u; r < 4u; r++) {
                    low[r * ITEMS + item] *= shrink[r];
                    high[r * ITEMS + item] *= shrink[r];
                }
            }
            for (var j = 0u; j < min(PAGE, count - n * PAGE); j++) {
                let weight = weights[j * FOURS + four];
                for (var item = 0u; item < ITEMS; item++) {
                    let o = min(item * LANES + part, OCTS - 1u);
                    let value = v[kv_oct(page_head, j, o)];
                    let scale = kv_scale(v[kv_factor(page_head, j, o / KV_BLOCK)], j, o / KV_BLOCK);
                    let value_low = kv_low(value, scale);
                    let value_high = kv_high(value, scale);
                    for (var r = 0u; r < 4u; r++) {
                        low[r * ITEMS + item] += value_low * weight[r];
                        high[r * ITEMS + item] += value_high * weight[r];
                    }
                }
            }
        }
    }

    workgroupBarrier();
    partial[lane.index] = sum;
    workgroupBarrier();
    var total = vec4<f32>(0.0);
    for (var i = 0u; i < LANES; i++) {
        total += partial[four * LANES + i];
    }
    for (var r = 0u; r < 4u; r++) {
        for (var item = 0u; item < ITEMS; item++) {
            let o = item * LANES + part;
            if (known[r] > 0u && o < OCTS) {
                let at = r * ITEMS + item;
                finish(token[r], group, row_head[r], o * 8u, low[at], high[at], top[r], total[r]);
            }
        }
    }
    // The padding of the rows stays zero, whatever the memory held before.
    let padding = p.pitch - p.width;
    for (var i = lane.index; group.x == 0u && i < (end - start) * padding; i += lane.count) {
        y[(start + i / padding) * p.pitch + p.width + i % padding] = 0.0;
    }
}
