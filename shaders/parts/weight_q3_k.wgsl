// Weights in Q3_K: per group of 32 two words, for each eight groups 13: d in f16, the signed bytes s of 16 halves,
// then a word for each group. Of a half of 16 weights the group's word has ten weights of three bits and the lower
// two bits of the last, and half of the other word five weights and its upper bit. w = d s q - 4 d s.
const HAS_SCALE = true;
const HAS_MIN = !TAKES_OFF;
const HALVES = true;
const NARROW = true;

struct Block {
    q: vec2<u32>,
    high: u32,
    d: f32,
    s: u32,
}

// How superblocks lie, for blocks_super.
const WORDS = 13u;
const SHARED_BY = 2u;
const APART = 1u;
const QUANTS = 8u;

// A group, of its quants, its own words, the superblock's first word, and that of its scales from bit 0 on.
fn block_of(q: vec4<u32>, apart: vec2<u32>, head: u32, shares: u32) -> Block {
    return Block(q.xy, apart.x, unpack2x16float(head).x, shares);
}

// Weights 4 i .. 4 i + 3 of the group, before the scale.
fn quad(b: Block, i: u32) -> vec4<f32> {
    let ten = b.q[i / 4u];
    // So that no weight reaches beyond bit 22.
    let upper = ten >> 12u;
    let five = b.high >> (i / 4u * 16u);
    switch i % 4u {
        case 0u: { return picked(vec4<u32>(ten), vec4<u32>(0u, 3u, 6u, 9u), 7u, 4.0); }
        case 1u: { return picked(vec4<u32>(ten, ten, ten, upper), vec4<u32>(12u, 15u, 18u, 9u), 7u, 4.0); }
        case 2u: { return picked(vec4<u32>(upper, upper, five, five), vec4<u32>(12u, 15u, 0u, 3u), 7u, 4.0); }
        default: {
            let last = (ten >> 30u) | ((five >> 13u) & 4u);
            return picked(vec4<u32>(five, five, five, last), vec4<u32>(6u, 9u, 12u, 0u), 7u, 4.0);
        }
    }
}

// The same with lift(i) more, where that is cheaper.
const LIFTS = false;
fn lift(i: u32) -> f32 { return 0.0; }
fn lifted(b: Block, i: u32) -> vec4<f32> { return quad(b, i); }

// The scale of a half, a signed byte, and times d.
fn whole_scale(b: Block, half: u32) -> f32 { return f32(bitcast<i32>(b.s << (24u - 8u * half)) >> 24u); }

fn scale(b: Block, half: u32) -> f32 { return b.d * whole_scale(b, half); }

fn scale_min(b: Block, i: u32) -> vec2<f32> {
    let d = scale(b, i / 4u);
    return vec2<f32>(d, -left(4.0, d));
}

// The sum of w x, from those of q x and of x over the halves of the group.
fn weigh(b: Block, qx: vec2<f32>, x: vec2<f32>) -> f32 {
    let sums = qx - vec2<f32>(left(4.0, x.x), left(4.0, x.y));
    return scale(b, 0u) * sums.x + scale(b, 1u) * sums.y;
}

// The same in two steps: of each half, and of both, which share d.
fn weigh_half(b: Block, half: u32, qx: f32, x: f32) -> vec2<f32> {
    return vec2<f32>(whole_scale(b, half) * (qx - left(4.0, x)), 0.0);
}
fn weigh_halves(b: Block, sums: vec2<f32>) -> f32 { return b.d * sums.x; }
