//! A hello as a client sends it.

/// Its extensions, as kind and data.
pub type Extensions<'a> = &'a [(u16, Vec<u8>)];

pub fn vector(width: usize, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length[4 - width..], data].concat()
}

pub fn server_name(name: &str) -> (u16, Vec<u8>) {
    let entry = [vec![0], vector(2, name.as_bytes())].concat();
    (0, vector(2, &entry))
}

/// The message, without records.
pub fn message(extensions: Extensions<'_>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend(vector(1, &[9; 32]));
    body.extend(vector(2, &[0x13, 1, 0x13, 2]));
    body.extend(vector(1, &[0]));
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), vector(2, data)].concat())
        .collect();
    body.extend(vector(2, &extensions));
    [vec![1], vector(3, &body)].concat()
}

/// In records of so many bytes each.
pub fn records(message: &[u8], each: usize) -> Vec<u8> {
    message
        .chunks(each.max(1))
        .flat_map(|part| [vec![22, 3, 1], vector(2, part)].concat())
        .collect()
}

pub fn hello(name: &str) -> Vec<u8> {
    records(
        &message(&[(43, vec![2, 3, 4]), server_name(name), (16, vec![0, 0])]),
        16_384,
    )
}
