// Queries of a tile in registers: each invocation keeps all of them.
var<private> queries: array<vec4<f32>, HEADS * OCTS * 2>;

fn queries_first(lane: Lane) -> u32 { return 0u; }

fn queries_step(lane: Lane) -> u32 { return 1u; }
