//! Sizes and times as people write and read them.

use std::time::Duration;

use dfs_proto::Timestamp;

const STEPS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `400M`, `1GiB`, `10k`, `512`: bytes, each step 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size: give a number and K, M, G or T"))?;
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" | "c" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(format!("`{text}` is not a size: the unit is K, M, G, T or P")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// Bytes for people: `512 B`, `1.5 KiB`, `64 MiB`.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut step = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && step + 1 < STEPS.len() {
        value /= 1024.0;
        step += 1;
    }
    if step == 0 || value >= 99.95 {
        format!("{value:.0} {}", STEPS[step])
    } else {
        format!("{value:.1} {}", STEPS[step])
    }
}

/// Bytes as a column of `ls`, `du`, `df`: exact, or for people.
pub fn size(bytes: u64, human_readable: bool) -> String {
    if human_readable { human(bytes) } else { bytes.to_string() }
}

/// `4 ms`, `1.3 s`, `4 min 10 s`, `2 h 5 min`.
pub fn duration(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0 if time.as_millis() < 100 => format!("{} ms", time.as_millis()),
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", secs / 60, secs % 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} days {} h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// `1,204,000`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Local time to the minute, as `ls -l` shows it.
pub fn local_time(time: Timestamp) -> String {
    match jiff::Timestamp::new(time.secs, time.nanos as i32) {
        Ok(at) => at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => format!("@{}", time.secs),
    }
}

/// RFC 3339 in UTC, as JSON carries it.
pub fn utc_time(time: Timestamp) -> String {
    match jiff::Timestamp::new(time.secs, time.nanos as i32) {
        Ok(at) => at.to_string(),
        Err(_) => format!("@{}", time.secs),
    }
}

/// `-rwxr-sr-t`-style permission bits without the type letter.
pub fn permissions(mode: u16) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = String::with_capacity(9);
    for (i, (bit, with_x, without_x)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * i);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => with_x,
            (true, false) => without_x,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_steps_of_1024() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("10k"), Ok(10 << 10));
        assert_eq!(parse_size("400M"), Ok(400 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("2TB"), Ok(2 << 40));
        for bad in ["", "M", "1.5G", "-1", "1X", "99999999999999999999", "99999999P"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human((1 << 20) - 1), "1.0 MiB");
        assert_eq!(human(64 << 20), "64.0 MiB");
        assert_eq!(human(400 << 30), "400 GiB");
        assert_eq!(human(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn durations_and_counts_read_well() {
        assert_eq!(duration(Duration::from_millis(4)), "4 ms");
        assert_eq!(duration(Duration::from_millis(1300)), "1.3 s");
        assert_eq!(duration(Duration::from_secs(250)), "4 min 10 s");
        assert_eq!(duration(Duration::from_secs(90_000)), "1 days 1 h");
        assert_eq!(count(1_204_000), "1,204,000");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn permission_bits_are_spelled_as_ls_spells_them() {
        assert_eq!(permissions(0o644), "rw-r--r--");
        assert_eq!(permissions(0o7755), "rwsr-sr-t");
        assert_eq!(permissions(0o7000), "--S--S--T");
    }

    #[test]
    fn times_before_1970_are_shown() {
        assert_eq!(utc_time(Timestamp { secs: 0, nanos: 0 }), "1970-01-01T00:00:00Z");
        assert_eq!(utc_time(Timestamp { secs: -1, nanos: 0 }), "1969-12-31T23:59:59Z");
    }
}
