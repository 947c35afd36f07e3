// q'[t, h, :] = R(pos_t) q[t, h, :]; page[pos_t] <- R(pos_t) k[t, :, :], v[t, :, :]
//
// Grid   flat over n_tokens x (heads pairs + 2 kv_heads UNITS): an invocation for a pair of a
//        query, or for a unit of a key or value, which is what the cache's format packs at once.
// Links  step, lane_thread, kv_*, pages_*, heads_*
//
// Rotates neighbouring pairs (2 i, 2 i + 1) by the angle pos * freq_i (Su et al., RoFormer);
// models with halves rotated have their rows reordered at load. Sine and cosine are not
// computed here, where drivers differ, but come from two tables made on the host in f64:
// position pos = FINE a + b turns by the product of the rotations for FINE a and for b.
// Pairs beyond `rotated` pass unchanged; those that only fill up a stored head are zero.
struct Params {
    heads: u32,
    kv_heads: u32,
    pairs: u32,    // head_dim / 2
    rotated: u32,  // pairs that turn
    pitch: u32,    // of a row of qkv, in pairs
    q_pitch: u32,  // of a row of q', in pairs
    ring: u32,     // pages of a sequence, where they are used in turn
    q_factors: u32,  // of queries that are normalised, in pairs
    k_factors: u32,  // of keys
    eps: f32,      // of the norm
}

@group(0) @binding(0) var<storage, read> qkv: array<vec2<f32>>;         // [T, (heads + 2 kv_heads) head_dim]
@group(0) @binding(1) var<storage, read> rope: array<vec2<f32>>;        // [FINE + ceil(ctx / FINE), rotated] cos, sin
@group(0) @binding(2) var<storage, read_write> q: array<vec2<f32>>;     // [T, heads, padded head_dim]
@group(0) @binding(3) var<storage, read_write> k: array<KvStored>;      // [pages, kv_heads, PAGE, padded head_dim]
@group(0) @binding(4) var<storage, read_write> v: array<KvStored>;      // [pages, kv_heads, PAGE, padded head_dim]
@group(0) @binding(7) var<uniform> p: Params;

const PAIRS = OCTS * 4u;                            // of a stored head
const UNITS = (PAIRS + KV_PAIRS - 1u) / KV_PAIRS;  // of a stored head

fn turn(a: vec2<f32>, by: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(a.x * by.x - a.y * by.y, a.x * by.y + a.y * by.x);
}

// A pair of a head; queries come first, then keys, then values.
fn turned(t: u32, head: u32, pair: u32, factor: f32) -> vec2<f32> {
    var value = vec2<f32>(0.0);
    if (pair < p.pairs) {
        value = normed(qkv[t * p.pitch + head * p.pairs + pair], factor, head, pair);
    }
    if (head < p.heads + p.kv_heads && pair < p.rotated) {
        let position = token_position(t);
        let fine = rope[(position % FINE) * p.rotated + pair];
        let coarse = rope[(FINE + position / FINE) * p.rotated + pair];
        value = turn(value, turn(fine, coarse));
    }
    return value;
}

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let queries = p.heads * PAIRS;
    let items = queries + 2u * p.kv_heads * UNITS;
    let t = team.index / items;
    let item = team.index % items;
    if (t >= n_tokens()) {
        return;
    }
    if (item < queries) {
        let head = item / PAIRS;
        q[t * p.q_pitch + item] = turned(t, head, item % PAIRS, head_factor(t, head));
        return;
    }
    let head = (item - queries) / UNITS;  // keys, then values
    let unit = (item - queries) % UNITS;
    let factor = head_factor(t, p.heads + head);
    var pairs: array<vec2<f32>, KV_PAIRS>;
    for (var i = 0u; i < KV_PAIRS; i++) {
        pairs[i] = turned(t, p.heads + head, unit * KV_PAIRS + i, factor);
    }
    var words = kv_pack(pairs);
    let position = token_position(t);
    let page = layer_page(token_sequence(t), position / PAGE);
    let page_head = page * p.kv_heads + head % p.kv_heads;
    for (var i = 0u; i < kv_words(unit); i++) {
        let at = kv_place(page_head, position % PAGE, unit, i);
        if (head < p.kv_heads) {
            k[at] = words[i];
        } else {
            v[at] = words[i];
        }
    }
}
