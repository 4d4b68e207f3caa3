-- Login roles, one per service, without passwords: where PostgreSQL asks for one, the operator sets it.
-- heliograph_owner owns every schema; services own nothing, so that no service can lift its own limits.
do $$
declare
  role text;
begin
  foreach role in array array['owner', 'registry', 'relay', 'sync', 'ledger', 'purge'] loop
    -- roles belong to the server, locks to a database: another database may be migrated at this very moment
    begin
      if not exists (select from pg_roles where rolname = 'heliograph_' || role) then
        execute format('create role %I %s', 'heliograph_' || role, case role when 'owner' then 'nologin' else 'login' end);
      end if;
    exception when duplicate_object or unique_violation then
      null;
    end;
  end loop;
end $$;

do $$
begin
  execute format('grant create on database %I to heliograph_owner', current_database());
  if not (select rolsuper from pg_roles where rolname = current_user) then
    execute format('grant heliograph_owner to %I', current_user);
  end if;
end $$;
