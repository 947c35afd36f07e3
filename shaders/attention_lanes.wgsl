// y[t, h, :] = sum_j softmax_j(scale q[t, h, :] . k[j, :]) v[j, :], j <= pos_t
//
// Grid   (kv_heads x blocks of HEADS query heads, n_tokens, splits of the span).
// Links  step, lane_subgroup, kv_*, span_*
//
// As `attention`, for adapters whose subgroups are the vector registers of a CPU. There every
// load costs for each lane, from workgroup memory as well, and a shuffle is one instruction: the
// eight lanes hold a query, and the outputs, together, eight values each, and hand them to one
// another. A key belongs to a lane, KEYS of them at a time; a value is loaded by all lanes.
// Nothing is left to wait for, so that there are no barriers.
struct Params {
    kv_heads: u32,
    group_heads: u32,  // query heads per KV head
    blocks: u32,       // ceil(group_heads / HEADS)
    head_dim: u32,
    scale: f32,
    q_pitch: u32,      // of a row of q, in values
    pitch: u32,        // of a row of y, in values
    width: u32,        // the part of a row of y that is not padding
}

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;     // [T, heads, OCTS * 8]
@group(0) @binding(1) var<storage, read> k: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(2) var<storage, read> v: array<KvOct>;         // [pages, kv_heads, PAGE, OCTS * 8]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;     // [T, heads, head_dim], or parts
@group(0) @binding(4) var<uniform> p: Params;

const_assert WG == 8u;

const LOWEST = -3.0e38;
const KEYS = 2u;                  // of a lane at a time
const ITEMS = (OCTS + 7u) / 8u;   // groups of eight values of a head that a lane holds

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let t = group.y;
    let kv_head = group.x / p.blocks;
    let first = group.x % p.blocks * HEADS;               // among the heads of this KV head
    let heads = min(HEADS, p.group_heads - first);
    let head = kv_head * p.group_heads + first;           // among all heads
    let me = lane.index;
    var query_low: array<vec4<f32>, HEADS * ITEMS>;
    var query_high: array<vec4<f32>, HEADS * ITEMS>;
    for (var h = 0u; h < HEADS; h++) {
        for (var item = 0u; item < ITEMS; item++) {
            // Heads and octs that are not there repeat the last; nothing of them is used.
            let o = min(item * 8u + me, OCTS - 1u);
            let at = t * p.q_pitch / 4u + ((head + min(h, heads - 1u)) * OCTS + o) * 2u;
            query_low[h * ITEMS + item] = q[at] * p.scale;
            query_high[h * ITEMS + item] = q[at + 1u] * p.scale;
        }
    }
    var top: array<f32, HEADS>;
    var sum: array<f32, HEADS>;
    for (var h = 0u; h < HEADS; h++) {
        top[h] = LOWEST;
    }
    var low: array<vec4<f32>, HEADS * ITEMS>;
    var high: array<vec4<f32>, HEADS * ITEMS>;

    let sequence = token_sequence(t);
    let count = token_position(t) + 1u;
    let pages = (count + PAGE - 1u) / PAGE;
    let end = end_page(pages, group);
    for (var n = first_page(pages, group); n < end; n++) {
        let page = (page_of(sequence, n) * p.kv_heads + kv_head) * PAGE * OCTS;
        let here = min(PAGE, count - n * PAGE);
        for (var j0 = 0u; j0 < here; j0 += 8u * KEYS) {
            var score: array<f32, KEYS * HEADS>;
            for (var item = 0u; item < ITEMS; item++) {
                for (var i = 0u; i < min(8u, OCTS - item * 8u); i++) {
                    var key_low: array<vec4<f32>, KEYS>;
                    var key_high: array<vec4<f32>, KEYS>;
                    for (var n = 0u; n < KEYS; n++) {
                        let key = k[page + (j0 + n * 8u + me) * OCTS + item * 8u + i];
                        key_low[n] = kv_low(key);
                        key_high[n] = kv_high(key);
                    }
                    for (var h = 0u; h < HEADS; h++) {
                        let a = subgroupShuffle(query_low[h * ITEMS + item], i);
                        let b = subgroupShuffle(query_high[h * ITEMS + item], i);
                        for (var n = 0u; n < KEYS; n++) {
                            score[n * HEADS + h] += dot(a, key_low[n]) + dot(b, key_high[n]);
                        }
                    }
                }
            }
            for (var h = 0u; h < HEADS; h++) {
                var seen = LOWEST;
                for (var n = 0u; n < KEYS; n++) {
                    seen = max(seen, select(LOWEST, score[n * HEADS + h], j0 + n * 8u + me < here));
                }
                let next = max(top[h], max_all(lane, seen));
                let factor = exp(top[h] - next);
                top[h] = next;
                sum[h] *= factor;
                for (var item = 0u; item < ITEMS; item++) {
                    low[h * ITEMS + item] *= factor;
                    high[h * ITEMS + item] *= factor;
                }
                for (var n = 0u; n < KEYS; n++) {
                    let weight = select(0.0, exp(score[n * HEADS + h] - next), j0 + n * 8u + me < here);
                    sum[h] += weight;
                    score[n * HEADS + h] = weight;
                }
            }
            for (var n = 0u; n < KEYS; n++) {
                let keys = min(8u, here - min(here, j0 + n * 8u));
                for (var i = 0u; i < keys; i++) {
                    for (var item = 0u; item < ITEMS; item++) {
                        let o = min(item * 8u + me, OCTS - 1u);
                        let value = v[page + (j0 + n * 8u + i) * OCTS + o];
                        let value_low = kv_low(value);
                        let value_high = kv_high(value);
                        for (var h = 0u; h < HEADS; h++) {
                            let weight = subgroupShuffle(score[n * HEADS + h], i);
                            low[h * ITEMS + item] += value_low * weight;
                            high[h * ITEMS + item] += value_high * weight;
                        }
                    }
                }
            }
        }
    }

    for (var h = 0u; h < HEADS; h++) {
        let total = sum_all(lane, sum[h]);
        for (var item = 0u; item < ITEMS; item++) {
            let o = item * 8u + me;
            if (h < heads && o < OCTS) {
                finish(t, group, head + h, o * 8u, low[h * ITEMS + item], high[h * ITEMS + item], top[h], total);
            }
        }
    }
    // The padding of the row stays zero, whatever the memory held before.
    if (group.x == 0u && group.z == 0u) {
        for (var i = p.width + me; i < p.pitch; i += 8u) {
            y[t * p.pitch + i] = 0.0;
        }
    }
}
