//! What is believed of a chunk file after a crash or a power cut: where it ends, and what is damage.

use super::*;

#[test]
fn a_replica_shorter_than_its_seal_order_is_short_and_stays_so() {
    let rig = Rig::with_volumes(1);
    let mut store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames(CHUNK, &[100])).unwrap();
    assert!(matches!(store.seal(CHUNK, SECOND, 101), Err(StoreError::Short { .. })));
    assert!(matches!(store.append(&open, &frames(CHUNK, &[100])), Err(StoreError::NotOpen(_))));
    drop(open);
    for _ in 0..2 {
        for _ in 0..2 {
            assert!(matches!(store.seal(CHUNK, SECOND, 101), Err(StoreError::Short { here: 100, asked: 101, .. })));
        }
        assert_eq!(store.digests()[0x34], 0);
        let report = store.unsealed(10)[0];
        assert_eq!((report.len, report.sealed, report.epoch), (100, false, FIRST));
        drop(store);
        store = rig.open();
    }
}

#[test]
fn a_short_replica_is_sealed_where_the_chunk_ends_from_then_on() {
    for (len, restart) in [(300, false), (300, true), (100, false), (0, true)] {
        let rig = Rig::with_volumes(1);
        let mut store = rig.open();
        let open = store.create(CHUNK, FIRST).unwrap();
        let frames = frames(CHUNK, &[100, 200]);
        store.append(&open, &frames).unwrap();
        assert!(matches!(store.seal(CHUNK, SECOND, 900), Err(StoreError::Short { .. })));
        drop(open);
        if restart {
            drop(store);
            store = rig.open();
        }
        let third = SECOND.next();
        assert_eq!(store.seal(CHUNK, third, len).unwrap(), Sealed::Now);
        assert_eq!(store.seal(CHUNK, SECOND, 900).unwrap(), Sealed::Outdated);
        drop(store);
        let store = rig.open();
        let replica = store.get(CHUNK).unwrap();
        assert_eq!((replica.state, replica.epoch, replica.len, replica.whole), (State::Sealed, third, len, len));
        assert!(matches!(verify(&store, CHUNK).unwrap(), Verdict::Whole { .. }));
    }
}

/// Programs of before marked short replicas as damaged behind their last byte.
#[test]
fn a_replica_condemned_for_its_length_alone_can_be_sealed_at_a_shorter_one() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames(CHUNK, &[100, 200])).unwrap();
    let replica = store.get(CHUNK).unwrap();
    assert!(store.found_damaged(CHUNK, &replica, 300, "300 of 900 bytes are here"));
    drop((open, store));
    let store = rig.open();
    assert_eq!(store.get(CHUNK).unwrap().state, State::Damaged);
    assert!(matches!(store.seal(CHUNK, SECOND, 900), Err(StoreError::Short { here: 300, .. })));
    assert_eq!(store.seal(CHUNK, SECOND.next(), 300).unwrap(), Sealed::Now);
}

#[test]
fn damage_in_the_middle_of_an_open_replica_is_not_taken_for_its_end() {
    // A frame's bytes, and an entry.
    for at in [data_offset(100), entry_offset(1)] {
        let rig = Rig::with_volumes(1);
        let store = rig.open();
        let open = store.create(CHUNK, FIRST).unwrap();
        let frames = frames(CHUNK, &[100, 200, 300]);
        store.append(&open, &frames).unwrap();
        store.sync_open(&open).unwrap();
        drop((open, store));
        rig.flip(CHUNK, at);
        for _ in 0..2 {
            let store = rig.open();
            for len in [600, 900, 100, 0] {
                if store.get(CHUNK).unwrap().state == State::Damaged || len > 100 {
                    let refused = store.seal(CHUNK, SECOND, len);
                    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
                }
            }
            let replica = store.get(CHUNK).unwrap();
            assert_eq!((replica.state, replica.whole, replica.len, replica.frames), (State::Damaged, 100, 600, 3));
            if at >= data_offset(0) {
                let read = read_all(&store, CHUNK).unwrap();
                assert!(read[2] == frames[2], "what lies behind the damage is served");
            }
        }
    }
}

/// Which frame is harmed, in which of its parts, after which number of frames was synced, of the four that there are.
#[test]
fn a_hole_in_what_was_never_synced_is_an_end_whatever_the_disk_kept_behind_it() {
    for (harmed, synced, damaged) in
        [(1, 0, false), (1, 1, false), (1, 2, true), (1, 4, true), (0, 1, true), (2, 2, false)]
    {
        for in_index in [false, true] {
            let rig = Rig::with_volumes(1);
            let store = rig.open();
            let open = store.create(CHUNK, FIRST).unwrap();
            let frames = frames(CHUNK, &[100, 200, 300, 400]);
            store.append(&open, &frames[..synced]).unwrap();
            store.sync_open(&open).unwrap();
            store.append(&open, &frames[synced..]).unwrap();
            drop((open, store));
            let at = frames[harmed].0.offset;
            rig.flip(CHUNK, if in_index { entry_offset(harmed as u32) } else { data_offset(at) });
            let mut store = rig.open();
            for _ in 0..2 {
                let refused = store.seal(CHUNK, SECOND, 1000);
                match damaged {
                    true => assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}"),
                    false => {
                        assert!(matches!(refused, Err(StoreError::Short { here, .. }) if here == at), "{refused:?}")
                    }
                }
                drop(store);
                store = rig.open();
            }
            if !damaged {
                assert_eq!(store.seal(CHUNK, SECOND.next(), at).unwrap(), Sealed::Now);
                assert!(matches!(verify(&store, CHUNK).unwrap(), Verdict::Whole { .. }));
            }
        }
    }
}

/// As after a power cut right behind the creation: its sync wrote the first header slot, and the file ends there.
#[test]
fn a_chunk_of_which_nothing_but_its_header_reached_the_disk_is_an_open_one_without_bytes() {
    let rig = Rig::with_volumes(1);
    drop(rig.open().create(CHUNK, FIRST).unwrap());
    assert_eq!(fs::metadata(rig.file(CHUNK)).unwrap().len(), 512);
    let store = rig.open();
    let replica = store.get(CHUNK).unwrap();
    assert_eq!((replica.state, replica.epoch, replica.len), (State::Open, FIRST, 0));
    assert!(matches!(store.seal(CHUNK, SECOND, 900), Err(StoreError::Short { here: 0, asked: 900, .. })));
    assert_eq!(store.seal(CHUNK, SECOND.next(), 0).unwrap(), Sealed::Now);
    assert!(matches!(verify(&store, CHUNK).unwrap(), Verdict::Whole { .. }));
}

#[test]
fn what_a_seal_has_synced_is_known_without_a_note() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    // A copy's entries say nothing of syncs; its header does.
    let mut incoming = store.begin_copy(CHUNK, SECOND, 600).unwrap();
    store.copy_frames(&mut incoming, &frames(CHUNK, &[100, 200, 300])).unwrap();
    store.publish(incoming).unwrap();
    rig.flip(CHUNK, data_offset(100));
    let refused = store.seal(CHUNK, SECOND.next(), 900);
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
}

/// What is cut or garbled behind the synced bytes.
#[derive(Clone, Debug)]
enum Harm {
    /// The file ends so many bytes behind the last synced one.
    Cut(u64),
    /// Bytes at this distance behind the last synced byte of the data.
    Data(u64, Vec<u8>),
    /// Bytes at this distance behind the last synced entry.
    Index(u64, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..200);
    prop_oneof![
        (0u64..200_000).prop_map(Harm::Cut),
        (0u64..200_000, bytes()).prop_map(|(at, bytes)| Harm::Data(at, bytes)),
        (0u64..1000, bytes()).prop_map(|(at, bytes)| Harm::Index(at, bytes)),
    ]
}

fn frame_lens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1u32..300, 4000u32..4200, FRAME_MAX - 2..=FRAME_MAX], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn synced_frames_survive_whatever_happens_behind_them(
        lens in frame_lens(), synced in any::<prop::sample::Index>(), harms in prop::collection::vec(harm(), 1..4),
    ) {
        let rig = Rig::with_volumes(1);
        let all = frames(CHUNK, &lens);
        let synced = synced.index(all.len() + 1);
        let store = rig.open();
        let open = store.create(CHUNK, FIRST).unwrap();
        store.append(&open, &all[..synced]).unwrap();
        prop_assert_eq!(store.sync_open(&open).unwrap(), end(&all[..synced]));
        store.append(&open, &all[synced..]).unwrap();
        drop((open, store));

        let safe = end(&all[..synced]);
        for harm in &harms {
            match harm {
                Harm::Cut(at) => {
                    let file = OpenOptions::new().write(true).open(rig.file(CHUNK)).unwrap();
                    file.set_len(data_offset(safe) + at).unwrap();
                }
                Harm::Data(at, bytes) => rig.overwrite(CHUNK, data_offset(safe) + at, bytes),
                Harm::Index(at, bytes) => rig.overwrite(CHUNK, entry_offset(synced as u32) + at, bytes),
            }
        }
        let store = rig.open();
        let len = store.get(CHUNK).unwrap().len;
        prop_assert!(len >= safe, "{len} of {safe}");
        let read = read_all(&store, CHUNK).unwrap();
        prop_assert_eq!(&read[..], &all[..read.len()]);
        prop_assert_eq!(end(&read), len);
        // An end is missing or it is not; with nothing harmed that was synced, there is no damage.
        match store.seal(CHUNK, SECOND, end(&all)) {
            Ok(_) => {
                prop_assert_eq!(read_all(&store, CHUNK).unwrap(), all);
                return Ok(());
            }
            Err(StoreError::Short { here, .. }) => prop_assert_eq!(here, len),
            Err(other) => prop_assert!(false, "{other}"),
        }
        // Sealing at what was synced works, and gives just that.
        prop_assert_eq!(store.seal(CHUNK, SECOND, safe).unwrap(), Sealed::Now);
        prop_assert_eq!(read_all(&store, CHUNK).unwrap(), &all[..synced]);
    }

    #[test]
    fn damage_before_the_synced_length_is_noticed_and_wrong_bytes_are_never_whole(
        lens in frame_lens(), at in any::<prop::sample::Index>(), in_index in any::<bool>(), seal in any::<bool>(),
    ) {
        let rig = Rig::with_volumes(1);
        let all = frames(CHUNK, &lens);
        let len = end(&all);
        let store = rig.open();
        let open = store.create(CHUNK, FIRST).unwrap();
        store.append(&open, &all).unwrap();
        store.sync_open(&open).unwrap();
        if seal {
            store.seal(CHUNK, SECOND, len).unwrap();
        }
        drop((open, store));
        match in_index {
            true => rig.flip(CHUNK, entry_offset(0) + at.index(all.len() * 64) as u64),
            false => rig.flip(CHUNK, data_offset(0) + at.index(len as usize) as u64),
        }
        let store = rig.open();
        if seal {
            let damaged = matches!(verify(&store, CHUNK).unwrap(), Verdict::Damaged { .. });
            prop_assert!(damaged);
        } else {
            // Only damage in the last frame looks like an end.
            let sealed = store.seal(CHUNK, SECOND, len);
            let short = matches!(sealed, Err(StoreError::Short { .. }));
            prop_assert!(short || matches!(sealed, Err(StoreError::Damaged { .. })), "{sealed:?}");
            prop_assert_eq!(short, store.get(CHUNK).unwrap().whole == end(&all[..all.len() - 1]));
        }
        let whole = store.get(CHUNK).unwrap().whole;
        prop_assert!(whole < len, "{whole} of {len}");
        for (frame, bytes) in read_all(&store, CHUNK).unwrap_or_default() {
            let right = all.contains(&(frame, bytes.clone()));
            prop_assert_eq!(frame.matches(CHUNK, &bytes), right);
            prop_assert!(right || frame.end() > whole);
        }
    }
}

#[test]
fn an_open_chunk_cut_at_every_boundary_keeps_the_frames_before_it() {
    let rig = Rig::with_volumes(1);
    let all = frames(CHUNK, &[300, 4096, 1, FRAME_MAX]);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &all).unwrap();
    drop((open, store));
    let file = OpenOptions::new().write(true).open(rig.file(CHUNK)).unwrap();
    for whole in (0..all.len()).rev() {
        let boundary = data_offset(all[whole].0.end());
        for cut in [boundary - 1, data_offset(all[whole].0.offset)] {
            file.set_len(cut).unwrap();
            let store = rig.open();
            assert_eq!(read_all(&store, CHUNK).unwrap(), all[..whole], "cut at {cut}");
        }
    }
    for cut in [data_offset(0) - 1, entry_offset(2) + 5, entry_offset(0), 1024, 512] {
        file.set_len(cut).unwrap();
        assert_eq!(rig.open().get(CHUNK).unwrap().len, 0, "cut at {cut}");
    }
    file.set_len(100).unwrap();
    assert_eq!(rig.open().get(CHUNK).unwrap().state, State::Damaged);
}
