//! Disks that are added, emptied, vanish and come back.

use super::*;

fn replica_of(store: &Store, chunk: ChunkId) -> Replica {
    store.get(chunk).unwrap()
}

#[test]
fn a_replica_moves_to_another_volume_and_the_emptied_one_stays_out_over_a_restart() {
    let rig = Rig::with_volumes(2);
    let frames = frames(CHUNK, &[FRAME_MAX, 100, 4096]);
    let store = rig.open();
    sealed(&store, &frames);
    let from = replica_of(&store, CHUNK).volume;
    let digests = store.digests();
    let dir = rig.config.volumes[from].clone();
    store.drain_volume(&dir).unwrap();
    assert!(matches!(store.drain_volume(&rig.config.volumes[1 - from]), Err(VolumeError::Only(_))));
    assert_eq!(store.draining(), [(from, vec![CHUNK])]);
    assert!(!store.retire_volume(from).unwrap());
    assert_eq!(store.move_replica(CHUNK).unwrap(), Moved::Yes);
    assert_eq!(replica_of(&store, CHUNK).volume, 1 - from);
    assert_eq!((read_all(&store, CHUNK).unwrap(), store.digests()), (frames.clone(), digests.clone()));
    assert!(store.retire_volume(from).unwrap());
    assert_eq!(store.volume_status().len(), 1);
    drop(store);
    let store = rig.open();
    assert_eq!(store.volume_status().len(), 1);
    assert_eq!((read_all(&store, CHUNK).unwrap(), store.digests()), (frames, digests));
    // It may come back, as a volume like any other.
    let number = store.add_volume(&rig.config, &dir).unwrap().unwrap();
    store.scan_added(number);
    assert_eq!(store.volume_status().len(), 2);
    assert_eq!(replica_of(&store, CHUNK).volume, 0);
}

#[test]
fn of_two_files_that_a_crash_left_of_a_move_the_one_on_the_volume_that_stays_is_believed() {
    let rig = Rig::with_volumes(2);
    let frames = frames(CHUNK, &[100, 100]);
    let store = rig.open();
    sealed(&store, &frames);
    let from = replica_of(&store, CHUNK).volume;
    let old = rig.file(CHUNK);
    store.drain_volume(&rig.config.volumes[from]).unwrap();
    let kept = fs::read(&old).unwrap();
    store.move_replica(CHUNK).unwrap();
    // As if the move into the trash had not reached the disk.
    fs::write(&old, kept).unwrap();
    drop(store);
    let store = rig.open();
    assert_eq!(replica_of(&store, CHUNK).volume, 1 - from);
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames);
    assert!(store.retire_volume(from).unwrap());
}

#[test]
fn damage_that_a_move_meets_is_found_and_not_carried_along() {
    let rig = Rig::with_volumes(2);
    let frames = frames(CHUNK, &[1000, 1000]);
    let store = rig.open();
    sealed(&store, &frames);
    let from = replica_of(&store, CHUNK).volume;
    rig.flip(CHUNK, data_offset(1500));
    store.drain_volume(&rig.config.volumes[from]).unwrap();
    assert!(matches!(store.move_replica(CHUNK).unwrap(), Moved::Damaged(_)));
    let replica = replica_of(&store, CHUNK);
    assert_eq!((replica.state, replica.whole, replica.volume), (State::Damaged, 1000, from));
}

#[test]
fn a_volume_whose_folder_vanishes_fails_and_a_new_disk_takes_its_place() {
    let rig = Rig::with_volumes(2);
    let store = rig.open();
    sealed(&store, &frames(CHUNK, &[1000]));
    // The one with more room: which it is, depends on what else was writing when they were asked.
    let from = replica_of(&store, CHUNK).volume;
    let dir = rig.config.volumes[from].clone();
    assert!(matches!(store.replace_volume(&rig.config, &dir), Err(VolumeError::Working(_))));
    let aside = dir.with_extension("pulled");
    fs::rename(&dir, &aside).unwrap();
    store.maintain(0);
    let status = &store.volume_status()[from];
    assert!(status.failed.as_ref().is_some_and(|reason| reason.contains("gone")), "{status:?}");
    assert!(replica_of(&store, CHUNK).lost && store.digests().iter().all(|digest| *digest == 0));

    // Nothing there, then something else there: no. A new, empty disk: yes.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.tex"), "x").unwrap();
    assert!(matches!(store.replace_volume(&rig.config, &dir), Err(VolumeError::Home(HomeError::NotOurs(_)))));
    fs::remove_file(dir.join("thesis.tex")).unwrap();
    let number = store.replace_volume(&rig.config, &dir).unwrap().unwrap();
    store.scan_added(number);
    assert_eq!(store.get(CHUNK), None);
    assert_eq!(store.volume_status().iter().filter(|volume| volume.failed.is_none()).count(), 2);
    // The old disk is another one from here on.
    drop(store);
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();
    assert!(Store::open(&rig.config).is_err(), "holds another volume than before");
}

#[test]
fn a_failed_volume_that_is_in_order_again_comes_back_with_its_replicas() {
    let rig = Rig::with_volumes(2);
    let frames = frames(CHUNK, &[1000]);
    let store = rig.open();
    sealed(&store, &frames);
    let from = replica_of(&store, CHUNK).volume;
    let dir = rig.config.volumes[from].clone();
    let digests = store.digests();
    fs::rename(&dir, dir.with_extension("pulled")).unwrap();
    store.maintain(0);
    assert!(matches!(store.add_volume(&rig.config, &dir), Err(VolumeError::Home(HomeError::Empty(_)))));
    fs::rename(dir.with_extension("pulled"), &dir).unwrap();
    assert!(matches!(store.replace_volume(&rig.config, &dir), Err(VolumeError::SameDisk(_))));
    let number = store.add_volume(&rig.config, &dir).unwrap().unwrap();
    store.scan_added(number);
    assert_eq!((read_all(&store, CHUNK).unwrap(), store.digests()), (frames, digests));
    assert_eq!(replica_of(&store, CHUNK).verified_s, 0);
    assert!(store.volume_status().iter().all(|volume| volume.failed.is_none()));
}

#[test]
fn an_added_volume_is_used_at_once_and_after_a_restart() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let dir = rig.config.volumes[0].with_file_name("more");
    assert!(matches!(store.add_volume(&rig.config, Path::new("more")), Err(VolumeError::Relative(_))));
    store.add_volume(&rig.config, &dir).unwrap();
    assert!(matches!(store.add_volume(&rig.config, &dir), Err(VolumeError::InUse(_))));
    drop(store);
    let store = rig.open();
    assert_eq!(store.volume_status().len(), 2);
    // Emptying can be thought better of.
    store.drain_volume(&dir).unwrap();
    assert!(store.volume_status()[1].draining);
    assert_eq!(store.add_volume(&rig.config, &dir).unwrap(), None);
    assert!(!store.volume_status()[1].draining);
}
