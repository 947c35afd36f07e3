// Lanes: every invocation is a team of its own. For adapters whose invocations are the
// lanes of a CPU's vector unit, where any exchange between them costs more than it saves.
struct Team {
    index: u32,  // of this team in the grid's x and y
    count: u32,  // teams in the grid's x and y
}

struct Lane {
    index: u32,  // of this invocation in its team
    count: u32,  // invocations in a team
}

fn sum_all(lane: Lane, v: f32) -> f32 { return v; }

fn sum_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> { return v; }

fn max_all4(lane: Lane, v: vec4<f32>) -> vec4<f32> { return v; }

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let linear = group.x + group.y * groups.x;
    kernel(group, Team(linear * WG + index, groups.x * groups.y * WG), Lane(0u, 1u));
}
