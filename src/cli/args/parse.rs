//! Times, destinations and variables, as they are typed.

use std::time::Duration;

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number with ms, s, m or h behind it".to_owned())?;
    let ms = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("its unit is ms, s, m, h or d".to_owned()),
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".to_owned())
}

/// Unix milliseconds, or so long ago.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    if text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| "Unix milliseconds".to_owned());
    }
    let ago = u64::try_from(duration(text)?.as_millis()).map_err(|_| "too long".to_owned())?;
    Ok(crate::show::text::now_ms().saturating_sub(ago))
}

/// What can be read as nothing but a destination, by ssh and by the shell that the line is pasted into.
pub(super) fn destination(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix("ssh://").unwrap_or(text);
    let host = bare.rsplit('@').next().unwrap_or_default();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@:%+".contains(&b);
    if host.is_empty()
        || bare.starts_with(['-', '@'])
        || host.starts_with('-')
        || text.len() > 255
        || !bare.bytes().all(is_plain)
    {
        return Err("USER@HOST, or ssh://USER@HOST:PORT".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2h"), Ok(Duration::from_hours(2)));
        for bad in [
            "",
            "s",
            "1w",
            "-1s",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(moment("1700000000000"), Ok(1_700_000_000_000));
    }

    #[test]
    fn a_destination_is_no_option_and_no_word_of_a_shell() {
        for good in [
            "host",
            "me@gate.example",
            "me@::1",
            "ssh://me@gate.example:2222",
        ] {
            assert_eq!(destination(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "-oProxyCommand=x",
            "me@-oProxyCommand=x",
            "a b",
            "a;b",
            "$(id)",
            "a`id`",
            "a'b",
            "me@",
            "@host",
            "ssh://-x",
            "ssh://a/b",
            "a\nb",
        ] {
            assert!(destination(bad).is_err(), "{bad}");
        }
    }
}
