//! Figures of this machine, from the kernel.

use std::path::Path;

use serde_json::{Value, json};

/// `None` where the kernel says nothing.
pub fn read(disk: &Path) -> Option<Value> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |key: &str| -> Option<u64> {
        let line = memory.lines().find(|line| line.starts_with(key))?;
        let figure: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        figure.checked_mul(1024)
    };
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let load: Vec<f64> = load
        .split_whitespace()
        .take(3)
        .filter_map(|figure| figure.parse().ok())
        .collect();
    let disk = rustix::fs::statvfs(disk).ok()?;
    Some(json!({
        "cpuCount": std::thread::available_parallelism().ok()?.get(), "loadAverage": load,
        "memoryTotalBytes": kilobytes("MemTotal:")?, "memoryFreeBytes": kilobytes("MemAvailable:")?,
        "diskTotalBytes": disk.f_blocks.saturating_mul(disk.f_frsize),
        "diskAvailableBytes": disk.f_bavail.saturating_mul(disk.f_frsize),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_core::nodes::Stats;
    use portcullis_core::time::Millis;

    #[test]
    fn the_figures_are_those_that_a_gateway_takes() {
        let stats = read(Path::new("/")).unwrap();
        assert!(Stats::parse(&stats, Millis(1)).is_some(), "{stats}");
    }
}
