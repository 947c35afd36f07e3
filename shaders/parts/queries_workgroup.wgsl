// Queries of a tile in workgroup memory: each invocation brings its share.
var<workgroup> queries: array<vec4<f32>, HEADS * OCTS * 2>;

fn queries_first(lane: Lane) -> u32 { return lane.index; }

fn queries_step(lane: Lane) -> u32 { return lane.count; }
