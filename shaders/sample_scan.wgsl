// v[o, i] = scale_s penalised(logits[o, i]), tops[o, j] = max_m v[o, j + m runs]
//
// Grid   (runs / WG, n_outputs): one invocation for every `runs`th value of a row.
// Links  step, lane_thread, choice
//
// The first half of choosing a token: what every value needs, on the whole adapter. The
// largest value of each run tells `sample`, a single workgroup, which few runs to look into.
//
// Penalties: a token that was seen has a positive logit divided, and a negative one multiplied,
// by `repetition` (Keskar et al. 2019); one that was generated n times loses
// presence + n frequency. A count's highest bit stands for tokens of the prompt.
struct Params {
    vocab: u32,
    pitch: u32,  // of a row of logits and of v, in values
    runs: u32,   // invocations for a row
}

@group(0) @binding(0) var<storage, read> logits: array<f32>;        // [O, pitch]
@group(0) @binding(1) var<storage, read> choices: array<Choice>;    // [S]
@group(0) @binding(2) var<storage, read> counts: array<u32>;        // [S, vocab]
@group(0) @binding(3) var<storage, read_write> v: array<f32>;       // [O, pitch]
@group(0) @binding(4) var<storage, read_write> tops: array<f32>;    // [O, runs]
@group(0) @binding(5) var<uniform> p: Params;

fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
    let o = group.y;
    let j = team.index - o * p.runs;
    let sequence = token_sequence(output_token(o));
    let choice = choices[sequence];
    var top = LOWEST;
    for (var i = j; i < p.vocab; i += p.runs) {
        var logit = logits[o * p.pitch + i];
        let bits = bitcast<u32>(logit);
        // By its bits: compilers may assume that there are no infinities.
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            if (bits == 0xff800000u) {
                logit = -1.0e30;
            } else {
                top = NOT_A_NUMBER;
            }
        }
        if (with_penalties(choice)) {
            let count = counts[sequence * p.vocab + i];
            let generated = count & 0x7fffffffu;
            if (count != 0u) {
                logit *= select(choice.repetition, 1.0 / choice.repetition, logit > 0.0);
            }
            if (generated != 0u) {
                logit -= choice.presence + f32(generated) * choice.frequency;
            }
        }
        let value = clamp(logit, -1.0e30, 1.0e30) * choice.scale;
        v[o * p.pitch + i] = value;
        top = max(top, value);
    }
    tops[o * p.runs + j] = top;
}
