-- Looking back and erasing: labels, which versions changed a config, deletions that can be undone, purges.
--
-- Whoever is deleted leaves registry.head, so that every release reads "no such environment"; its row waits in deleted_environment, and a
-- trigger keeps its name. What is written once is changed by the functions here and by nobody else: they run as the owner, say so in a
-- setting of their transaction, and only then do the triggers let them. Written while the previous release runs, so its commits are
-- indexed and guarded too.
--
-- Lock order: a namespace's row, heads (ascending by environment), the namespace's advisory lock, objects, and the shards last.
set local role heliograph_owner;

create or replace function registry.refuse_change() returns trigger language plpgsql as $$
begin
    if tg_op <> 'TRUNCATE' and current_user = 'heliograph_owner' and current_setting('heliograph.erasing', true) = 'yes' then
        return null;                              -- of a statement trigger: go on
    end if;
    raise exception 'registry.% is written once', tg_table_name using errcode = 'restrict_violation';
end $$;

-- --- labels -----------------------------------------------------------------------------------------------------------------------

create table registry.label (
    namespace   text not null,
    environment text not null,
    name        text not null,
    number      bigint not null,
    version     bytea not null check (length(version) = 32),
    set_by      text not null,
    set_at      timestamptz not null default now(),
    primary key (namespace, environment, name)
);
create index label_of_version on registry.label (namespace, environment, number);

-- Names a version, or says why not:
--   set, moved, same   it names the version now; it is new, it named another one, it named this one
--   taken              it names another version and p_move is false; o_number and o_version are that one's
--   stale              it does not name p_expected; o_number and o_version: what it names (null: nothing)
--   missing            no such environment
--   full               the environment has p_limit labels
create function registry.set_label(
    p_namespace   text,
    p_environment text,
    p_name        text,
    p_number      bigint,
    p_version     bytea,
    p_expected    bytea,                          -- null: whatever it names
    p_move        boolean,
    p_actor       text,
    p_limit       int
) returns table (outcome text, o_number bigint, o_version bytea, o_set_by text, o_set_at timestamptz)
language plpgsql security definer set search_path = '' as $$
declare
    v_label registry.label;
    v_was   bytea;
begin
    perform from registry.head h where h.namespace = p_namespace and h.environment = p_environment for no key update;
    if not found then
        return query select 'missing', null::bigint, null::bytea, null::text, null::timestamptz;
        return;
    end if;
    select * into v_label from registry.label l where l.namespace = p_namespace and l.environment = p_environment and l.name = p_name;
    v_was := v_label.version;
    outcome := case when p_expected is not null and v_was is distinct from p_expected then 'stale'
                    when v_was is null then 'set'
                    when v_was = p_version then 'same'
                    when p_move or p_expected is not null then 'moved'
                    else 'taken' end;
    if outcome = 'set' and p_limit <= (select count(*) from registry.label l where l.namespace = p_namespace and l.environment = p_environment) then
        outcome := 'full';
    end if;
    if outcome in ('set', 'moved') then
        insert into registry.label as l (namespace, environment, name, number, version, set_by)
            values (p_namespace, p_environment, p_name, p_number, p_version, p_actor)
            on conflict (namespace, environment, name) do update
               set number = excluded.number, version = excluded.version, set_by = excluded.set_by, set_at = now()
            returning * into v_label;
        insert into registry.audit (namespace, environment, actor, action, detail)
            values (p_namespace, p_environment, p_actor, 'label.set',
                    jsonb_build_object('label', p_name, 'number', p_number, 'version', 'sha256:' || encode(p_version, 'hex'),
                                       'was', 'sha256:' || encode(v_was, 'hex')));
    end if;
    return query select outcome, v_label.number, v_label.version, v_label.set_by, v_label.set_at;
end $$;

--   removed   it names nothing now; o_number and o_version are what it named
--   stale     it does not name p_expected
--   missing   no such label
create function registry.remove_label(p_namespace text, p_environment text, p_name text, p_expected bytea, p_actor text)
returns table (outcome text, o_number bigint, o_version bytea) language plpgsql security definer set search_path = '' as $$
declare
    v_label registry.label;
begin
    select * into v_label from registry.label l
     where l.namespace = p_namespace and l.environment = p_environment and l.name = p_name
       and exists (select from registry.head h where h.namespace = p_namespace and h.environment = p_environment) for update;
    outcome := case when not found then 'missing' when p_expected is not null and v_label.version <> p_expected then 'stale' else 'removed' end;
    if outcome = 'removed' then
        delete from registry.label l where l.namespace = p_namespace and l.environment = p_environment and l.name = p_name;
        insert into registry.audit (namespace, environment, actor, action, detail)
            values (p_namespace, p_environment, p_actor, 'label.remove',
                    jsonb_build_object('label', p_name, 'number', v_label.number, 'version', 'sha256:' || encode(v_label.version, 'hex')));
    end if;
    return query select outcome, v_label.number, v_label.version;
end $$;

-- --- the past ---------------------------------------------------------------------------------------------------------------------

-- Which versions changed a config: version.names by name, so that a page of one config's history costs a page.
create table registry.change (
    namespace   text not null,
    environment text not null,
    name        text not null,
    number      bigint not null,
    primary key (namespace, environment, name, number)
);

create function registry.note_changes() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    insert into registry.change (namespace, environment, name, number)
        select new.namespace, new.environment, name, new.number from unnest(new.names) name on conflict do nothing;
    return null;
end $$;

create trigger note_changes after insert on registry.version for each row execute function registry.note_changes();
insert into registry.change (namespace, environment, name, number)
    select v.namespace, v.environment, name, v.number from registry.version v cross join unnest(v.names) name on conflict do nothing;

-- The version that was the head at a time: the last one whose record says a time that is not later; 0 before the first. Times in records
-- never go back and numbers have no gaps, so that twenty looks find one among a million, without an index.
create function registry.number_at(p_namespace text, p_environment text, p_at text) returns bigint language plpgsql stable as $$
declare
    v_low    bigint := 0;
    v_high   bigint;
    v_middle bigint;
begin
    select h.number into v_high from registry.head h where h.namespace = p_namespace and h.environment = p_environment;
    while v_low < v_high loop
        v_middle := (v_low + v_high + 1) / 2;
        if (select v.record::json ->> 'at' from registry.version v
             where v.namespace = p_namespace and v.environment = p_environment and v.number = v_middle) collate "C" <= p_at then
            v_low := v_middle;
        else
            v_high := v_middle - 1;
        end if;
    end loop;
    return v_low;
end $$;

-- --- deletion ---------------------------------------------------------------------------------------------------------------------

create table registry.deleted_namespace (
    name       text primary key references registry.namespace,
    deleted_by text not null,
    deleted_at timestamptz not null,
    erase_at   timestamptz not null
);

create table registry.deleted_environment (
    namespace   text not null references registry.namespace,
    environment text not null,
    head        jsonb not null,                   -- its row in registry.head, to be put back
    number      bigint not null,
    version     bytea not null,
    root        bytea not null,
    configs     int not null,
    deleted_by  text not null,
    deleted_at  timestamptz not null,
    erase_at    timestamptz not null,
    whole       boolean not null,                 -- it went, and comes back, with its namespace
    erasing     boolean not null default false,   -- its time is over and parts of it are gone
    primary key (namespace, environment)
);
create index deleted_environment_due on registry.deleted_environment (erase_at);

-- Everybody who moves a head shares the namespace's lock until the commit; the collector of objects holds it alone while it removes some.
create function registry.share_namespace() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(1751476327, hashtext(new.namespace));
    return new;
end $$;

create trigger share_namespace before insert or update on registry.head for each row execute function registry.share_namespace();

-- A name that is deleted cannot be taken: the row is left out, which the commit function reports as "exists".
create function registry.keep_deleted_names() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    perform from registry.namespace n where n.name = new.namespace for key share;
    if exists (select from registry.deleted_namespace d where d.name = new.namespace)
       or exists (select from registry.deleted_environment d where d.namespace = new.namespace and d.environment = new.environment) then
        return null;
    end if;
    return new;
end $$;

create trigger keep_deleted_names before insert on registry.head for each row execute function registry.keep_deleted_names();

-- Deletes environments, p_whole: with their namespace, which must have no others. One event each, in the order of p_shards (ascending).
--   deleted    everything or nothing was
--   missing    one of them, or the namespace, is not there
--   moved      (p_whole) the namespace has other environments than these
create function registry.delete_environments(
    p_namespace    text,
    p_environments text[],
    p_whole        boolean,
    p_shards       int[],
    p_events       bytea[],
    p_actor        text,
    p_deleted_at   timestamptz,
    p_erase_at     timestamptz,
    p_trace        text
) returns text language plpgsql security definer set search_path = '' as $$
declare
    v_gone  int;
    v_place int;
begin
    if p_whole then
        perform from registry.namespace n where n.name = p_namespace for update;
        if not found or exists (select from registry.deleted_namespace d where d.name = p_namespace) then
            return 'missing';
        end if;
    else
        perform from registry.namespace n where n.name = p_namespace for key share;
    end if;
    perform from registry.head h where h.namespace = p_namespace and (p_whole or h.environment = any(p_environments))
      order by h.environment for update;
    select count(*) into v_gone from registry.head h where h.namespace = p_namespace and h.environment = any(p_environments);
    if v_gone <> cardinality(p_environments) then
        return case when p_whole then 'moved' else 'missing' end;
    elsif p_whole and v_gone <> (select count(*) from registry.head h where h.namespace = p_namespace) then
        return 'moved';
    end if;

    insert into registry.deleted_environment
        (namespace, environment, head, number, version, root, configs, deleted_by, deleted_at, erase_at, whole)
        select h.namespace, h.environment, to_jsonb(h), h.number, h.version, h.root, h.configs, p_actor, p_deleted_at, p_erase_at, p_whole
          from registry.head h where h.namespace = p_namespace and h.environment = any(p_environments);
    delete from registry.head h where h.namespace = p_namespace and h.environment = any(p_environments);
    insert into registry.audit (namespace, environment, actor, action, detail)
        select p_namespace, d.environment, p_actor, 'environment.delete',
               jsonb_build_object('number', d.number, 'erase_at', p_erase_at, 'with_namespace', p_whole)
          from registry.deleted_environment d where d.namespace = p_namespace and d.environment = any(p_environments);
    if p_whole then
        insert into registry.deleted_namespace (name, deleted_by, deleted_at, erase_at)
            values (p_namespace, p_actor, p_deleted_at, p_erase_at);
        update registry.deleted_environment d set erase_at = p_erase_at where d.namespace = p_namespace and d.erase_at > p_erase_at;
        insert into registry.audit (namespace, actor, action, detail)
            values (p_namespace, p_actor, 'namespace.delete',
                    jsonb_build_object('environments', to_jsonb(p_environments), 'erase_at', p_erase_at));
    end if;
    for v_place in select generate_subscripts(p_shards, 1) loop
        perform eventlog.append_event(p_shards[v_place], p_namespace || '/' || p_environments[v_place], p_events[v_place], p_trace);
    end loop;
    return 'deleted';
end $$;

-- Puts back what was deleted and is not erased yet; p_environment null: the namespace with all that went with it. Returns the names of the
-- environments that are there again; null: nothing is deleted by that name, or its namespace is.
create function registry.restore_environments(p_namespace text, p_environment text, p_actor text) returns text[]
language plpgsql security definer set search_path = '' as $$
declare
    v_back  text[];
    v_heads jsonb;
begin
    perform from registry.namespace n where n.name = p_namespace for update;
    perform from registry.deleted_environment d where d.namespace = p_namespace order by d.environment for update;
    if p_environment is null then
        delete from registry.deleted_namespace d where d.name = p_namespace and d.erase_at > now();
        if not found then
            return null;
        end if;
        insert into registry.audit (namespace, actor, action) values (p_namespace, p_actor, 'namespace.restore');
    elsif exists (select from registry.deleted_namespace d where d.name = p_namespace) then
        return null;
    end if;
    select array_agg(d.environment order by d.environment), jsonb_agg(d.head) into v_back, v_heads
      from registry.deleted_environment d
     where d.namespace = p_namespace and not d.erasing and d.erase_at > now()
       and (d.environment = p_environment or (p_environment is null and d.whole));
    if v_back is null then
        return case when p_environment is null then array[]::text[] end;
    end if;
    delete from registry.deleted_environment d where d.namespace = p_namespace and d.environment = any(v_back);
    perform set_config('heliograph.restoring', 'yes', true);
    insert into registry.head select (jsonb_populate_record(null::registry.head, h)).* from jsonb_array_elements(v_heads) h;
    insert into registry.audit (namespace, environment, actor, action)
        select p_namespace, name, p_actor, 'environment.restore' from unnest(v_back) name;
    return v_back;
end $$;

-- --- erasing for good -------------------------------------------------------------------------------------------------------------

-- A namespace whose objects are to be looked through for those that nothing refers to any more. `swept`: up to this digest they were.
-- `stale`: the marks that are there are an earlier collection's.
create table registry.collection (
    namespace text primary key,
    asked_at  timestamptz not null default now(),
    stale     boolean not null default true,
    swept     bytea not null default '',
    removed   bigint not null default 0
);

-- What is referred to. `open`: what it refers to itself is not known yet.
create table registry.mark (
    namespace text not null,
    digest    bytea not null,
    open      boolean not null,
    primary key (namespace, digest)
);
create index mark_open on registry.mark (namespace, digest) where open;

-- Versions up to this number have been marked.
create table registry.marked_version (
    namespace   text not null,
    environment text not null,
    number      bigint not null,
    primary key (namespace, environment)
);

-- One bounded step of erasing an environment whose time has come. `o_rows`: removed in this step; 0: nothing is due. The last step takes
-- its name away, writes the audit row and asks for the collection of its namespace's objects.
create function registry.erase_some(p_limit int) returns table (o_namespace text, o_environment text, o_rows bigint, o_done boolean)
language plpgsql security definer set search_path = '' as $$
declare
    v_due  registry.deleted_environment;
begin
    perform set_config('heliograph.erasing', 'yes', true);
    o_done := false;
    select * into v_due from registry.deleted_environment d where d.erase_at <= now() order by d.erase_at limit 1 for update skip locked;
    if not found then
        return;
    end if;
    o_namespace := v_due.namespace;
    o_environment := v_due.environment;
    update registry.deleted_environment d set erasing = true
     where d.namespace = o_namespace and d.environment = o_environment and not d.erasing;
    delete from registry.lineage l where l.namespace = o_namespace and o_environment in (l.environment, l.source_environment);
    delete from registry.policy p where p.namespace = o_namespace and p.environment = o_environment;  -- made by 0010

    delete from registry.change where ctid = any(array(
        select c.ctid from registry.change c where c.namespace = o_namespace and c.environment = o_environment limit p_limit));
    get diagnostics o_rows = row_count;
    if o_rows = 0 then
        delete from registry.version where ctid = any(array(
            select v.ctid from registry.version v where v.namespace = o_namespace and v.environment = o_environment limit p_limit));
        get diagnostics o_rows = row_count;
    end if;
    if o_rows = 0 then
        delete from registry.label l where l.namespace = o_namespace and l.environment = o_environment;
        delete from registry.deleted_environment d where d.namespace = o_namespace and d.environment = o_environment;
        insert into registry.collection (namespace) values (o_namespace)
            on conflict (namespace) do update set asked_at = now(), stale = true, swept = '';
        insert into registry.audit (namespace, environment, actor, action, detail)
            values (o_namespace, o_environment, 'registry', 'environment.erase',
                    jsonb_build_object('number', v_due.number, 'deleted_at', v_due.deleted_at, 'deleted_by', v_due.deleted_by));
        o_rows := 1;
        o_done := true;
    end if;
    return next;
end $$;

-- Erases the name of a namespace whose time has come, once nothing of it is left. Its purges go with it; the audit trail stays.
create function registry.erase_namespace() returns text language plpgsql security definer set search_path = '' as $$
declare
    v_name text;
begin
    select d.name into v_name from registry.deleted_namespace d
     where d.erase_at <= now()
       and not exists (select from registry.deleted_environment e where e.namespace = d.name)
       and not exists (select from registry.collection c where c.namespace = d.name)
     order by d.erase_at limit 1 for update skip locked;
    if found then
        delete from registry.purged p where p.namespace = v_name;
        delete from registry.purge p where p.namespace = v_name;
        delete from registry.deleted_namespace d where d.name = v_name;
        delete from registry.namespace n where n.name = v_name;
        insert into registry.audit (namespace, actor, action) values (v_name, 'registry', 'namespace.erase');
    end if;
    return v_name;
end $$;

-- Every step of a collection locks its row first, so that two collectors only take turns. Forgets up to p_limit marks of an earlier
-- collection; false: there are more.
create function registry.begin_collection(p_namespace text, p_limit int) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
    perform from registry.collection c where c.namespace = p_namespace and c.stale for update;
    if not found then
        return true;
    end if;
    delete from registry.mark where ctid = any(array(select m.ctid from registry.mark m where m.namespace = p_namespace limit p_limit));
    if found then
        return false;
    end if;
    delete from registry.marked_version m where m.namespace = p_namespace;
    update registry.collection c set stale = false where c.namespace = p_namespace;
    return true;
end $$;

-- What has a history in a namespace and may still be read or restored.
create view registry.kept_environment as
    select namespace, environment, number, root, version from registry.head
     union all select namespace, environment, number, root, version from registry.deleted_environment where not erasing;

-- Marks the roots and messages of up to p_limit versions that are not marked yet; how many there were.
create function registry.mark_versions(p_namespace text, p_limit int) returns int language plpgsql security definer set search_path = '' as $$
declare
    v_environment text;
    v_marked      bigint;
    v_last        bigint;
    v_count       int;
begin
    perform from registry.collection c where c.namespace = p_namespace and not c.stale for update;
    if not found then
        return 0;
    end if;
    select e.environment, coalesce(m.number, 0) into v_environment, v_marked
      from registry.kept_environment e
      left join registry.marked_version m on m.namespace = p_namespace and m.environment = e.environment
     where e.namespace = p_namespace and e.number > coalesce(m.number, 0) limit 1;
    if not found then
        return 0;
    end if;
    select count(*), max(v.number) into v_count, v_last from registry.version v
     where v.namespace = p_namespace and v.environment = v_environment and v.number > v_marked and v.number <= v_marked + p_limit;
    insert into registry.mark (namespace, digest, open)
        select p_namespace, v.root, true from registry.version v
         where v.namespace = p_namespace and v.environment = v_environment and v.number > v_marked and v.number <= v_last
         union
        select p_namespace, v.message, false from registry.version v
         where v.namespace = p_namespace and v.environment = v_environment and v.number > v_marked and v.number <= v_last and v.message is not null
        on conflict do nothing;
    insert into registry.marked_version (namespace, environment, number) values (p_namespace, v_environment, v_last)
        on conflict (namespace, environment) do update set number = excluded.number;
    return v_count;
end $$;

-- Marks what `p_known` refer to, which are open no longer.
create function registry.mark_objects(p_namespace text, p_known bytea[], p_open bytea[], p_closed bytea[]) returns void
language plpgsql security definer set search_path = '' as $$
begin
    perform from registry.collection c where c.namespace = p_namespace and not c.stale for update;
    if not found then
        return;
    end if;
    insert into registry.mark (namespace, digest, open)
        select p_namespace, d, true from (select distinct unnest(p_open) as d order by 1) o
         union all select p_namespace, d, false from (select distinct unnest(p_closed) as d order by 1) c
        on conflict do nothing;
    update registry.mark m set open = false where m.namespace = p_namespace and m.digest = any(p_known);
end $$;

-- Looks through up to p_limit objects and removes those without a mark.
--   swept    that many were looked through
--   behind   versions or marks came up since: mark first
--   done     there are no more; the marks and the collection are gone
-- Alone in the namespace while it runs, so that no commit can come to refer to what is being removed. A commit stores all that its base does
-- not refer to, so that what was removed before it is there again.
create function registry.sweep_some(p_namespace text, p_limit int) returns table (outcome text, o_removed bigint)
language plpgsql security definer set search_path = '' as $$
declare
    v_after bytea;
    v_last  bytea;
    v_total bigint;
begin
    perform set_config('heliograph.erasing', 'yes', true);
    perform pg_advisory_xact_lock(1751476327, hashtext(p_namespace));
    select c.swept into v_after from registry.collection c where c.namespace = p_namespace and not c.stale for update;
    if not found
       or exists (select from registry.mark m where m.namespace = p_namespace and m.open)
       or exists (select from registry.kept_environment e
                    left join registry.marked_version m on m.namespace = p_namespace and m.environment = e.environment
                   where e.namespace = p_namespace and e.number > coalesce(m.number, 0)) then
        return query select 'behind', 0::bigint;
        return;
    end if;
    select max(o.digest) into v_last from (select o.digest from registry.object o
        where o.namespace = p_namespace and o.digest > v_after order by o.digest limit p_limit) o;
    if v_last is not null then
        delete from registry.object o where o.namespace = p_namespace and o.digest > v_after and o.digest <= v_last
            and not exists (select from registry.mark m where m.namespace = p_namespace and m.digest = o.digest);
        get diagnostics o_removed = row_count;
        update registry.collection c set swept = v_last, removed = c.removed + o_removed where c.namespace = p_namespace;
        return query select 'swept', o_removed;
        return;
    end if;
    delete from registry.mark where ctid = any(array(select m.ctid from registry.mark m where m.namespace = p_namespace limit p_limit));
    get diagnostics o_removed = row_count;
    if o_removed > 0 then
        return query select 'swept', 0::bigint;
        return;
    end if;
    delete from registry.marked_version m where m.namespace = p_namespace;
    delete from registry.collection c where c.namespace = p_namespace returning c.removed into v_total;
    insert into registry.audit (namespace, actor, action, detail)
        values (p_namespace, 'registry', 'namespace.collect', jsonb_build_object('objects', v_total));
    return query select 'done', v_total;
end $$;

-- --- purge ------------------------------------------------------------------------------------------------------------------------

create table registry.purge (
    id         bigint generated always as identity primary key,
    namespace  text not null,
    at         timestamptz not null,
    purged_by  text not null,
    reason     text not null,
    order_text text not null,                     -- whose order: a ticket, a ruling
    digests    bytea[] not null,
    statement  text not null,                     -- the exact text that is signed
    signatures text not null
);
create index purge_of_namespace on registry.purge (namespace, id);

-- Texts that must not be stored. `purge` null: somebody asks for it, and for ten minutes nothing may come to refer to them.
create table registry.purged (
    namespace text not null,
    digest    bytea not null,
    purge     bigint references registry.purge,
    at        timestamptz not null default now(),
    primary key (namespace, digest)
);
create index purged_by on registry.purged (purge);
create index purged_at on registry.purged (at);

create function registry.is_purged(p_namespace text, p_digests bytea[]) returns boolean
language sql stable security definer set search_path = '' as $$
    select exists (select from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests)
                      and (p.purge is not null or p.at > now() - interval '10 minutes'))
$$;

create function registry.refuse_purged() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    if exists (select from registry.purged p where p.namespace = new.namespace and p.digest = new.digest
                  and (p.purge is not null or p.at > now() - interval '10 minutes')) then
        raise exception 'this % was purged and must not be stored again; write something else', new.kind using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create trigger refuse_purged before insert on registry.object for each row
    when (new.kind in ('document', 'schema', 'message')) execute function registry.refuse_purged();

-- A new environment that begins with content (a branch) has no head before it that would say that it was made before a purge was asked for:
-- for a minute after one, which no request takes, it has to be made again.
create function registry.refuse_branch_beside_purge() returns trigger language plpgsql security definer set search_path = '' as $$
begin
    if current_setting('heliograph.restoring', true) is distinct from 'yes'
       and exists (select from registry.purged p where p.namespace = new.namespace and p.at > now() - interval '1 minute') then
        raise exception 'texts of this namespace are being purged, or were a moment ago; branch again in a minute' using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

create trigger refuse_branch_beside_purge before insert on registry.head for each row
    when (new.number = 1 and new.configs > 0) execute function registry.refuse_branch_beside_purge();

-- From now on nothing new may refer to them. Called before it is known whether something does.
create function registry.ask_purge(p_namespace text, p_digests bytea[]) returns void language sql security definer set search_path = '' as $$
    insert into registry.purged as p (namespace, digest) select p_namespace, d from unnest(p_digests) d order by d
        on conflict (namespace, digest) do update set at = now() where p.purge is null
$$;

create function registry.cancel_purge(p_namespace text, p_digests bytea[]) returns void language sql security definer set search_path = '' as $$
    delete from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests) and p.purge is null
$$;

-- Replaces texts by a tombstone. The only function that changes an object: document, schema and message, never what holds digests.
-- False: it was not asked for, or too long ago; nothing was changed.
create function registry.purge_objects(
    p_namespace  text,
    p_digests    bytea[],
    p_tombstone  bytea,
    p_at         timestamptz,
    p_actor      text,
    p_reason     text,
    p_order      text,
    p_statement  text,
    p_signatures text,
    p_shards     int[],                           -- ascending
    p_event      bytea,
    p_trace      text
) returns boolean language plpgsql security definer set search_path = '' as $$
declare
    v_purge bigint;
    v_shard int;
begin
    perform set_config('heliograph.erasing', 'yes', true);
    perform from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests) order by p.digest for update;
    if cardinality(p_digests) <> (select count(*) from registry.purged p where p.namespace = p_namespace and p.digest = any(p_digests)
                                     and p.purge is null and p.at > now() - interval '10 minutes') then
        return false;
    end if;
    update registry.object o set body = p_tombstone, purged = true
     where o.namespace = p_namespace and o.digest = any(p_digests) and o.kind in ('document', 'schema', 'message') and not o.purged;
    insert into registry.purge (namespace, at, purged_by, reason, order_text, digests, statement, signatures)
        values (p_namespace, p_at, p_actor, p_reason, p_order, p_digests, p_statement, p_signatures) returning id into v_purge;
    update registry.purged p set purge = v_purge, at = clock_timestamp() where p.namespace = p_namespace and p.digest = any(p_digests);
    insert into registry.audit (namespace, actor, action, detail)
        values (p_namespace, p_actor, 'object.purge',
                jsonb_build_object('purge', v_purge, 'reason', p_reason, 'order', p_order, 'statement', p_statement,
                                   'signatures', p_signatures::jsonb));
    foreach v_shard in array p_shards loop
        perform eventlog.append_event(v_shard, p_namespace, p_event, p_trace);
    end loop;
    return true;
end $$;

revoke execute on all functions in schema registry from public;
grant execute on all functions in schema registry to heliograph_registry;
grant select on registry.label, registry.change, registry.deleted_namespace, registry.deleted_environment, registry.collection,
    registry.mark, registry.purge, registry.purged, registry.kept_environment to heliograph_registry;
reset role;
