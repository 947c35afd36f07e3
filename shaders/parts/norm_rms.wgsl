// Activations normalised on the way in: W (gain x / r) = (W (gain x)) / r, r the root of the
// mean square of x, which a team that reads all of x can sum as it goes.
const HAS_NORM = true;

@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;  // [k]

fn gain4(i: u32) -> vec4<f32> { return gain[i]; }
