# A provider for Vagrant whose machines run already: those of tests/vm/hosts. It becomes the Vagrantfile of
# VAGRANT_HOME, which Vagrant reads before the project's. Nothing is created; what is left of `vagrant up` are the
# synced folders, the provisioners and the triggers of vagrant/Vagrantfile.
module RunningMachines
  class Found
    def initialize(app, _env)
      @app = app
    end

    def call(env)
      env[:machine].id = env[:machine].name.to_s
      @app.call(env)
    end
  end

  class Provider < Vagrant.plugin("2", :provider)
    def initialize(machine)
      @machine = machine
    end

    def action(name)
      raise "running machines know up and provision, not #{name}" unless [:up, :provision].include?(name)
      Vagrant::Action::Builder.new.tap do |steps|
        steps.use Vagrant::Action::Builtin::ConfigValidate
        steps.use Found
        steps.use Vagrant::Action::Builtin::Provision
        steps.use Vagrant::Action::Builtin::SyncedFolders
      end
    end

    def ssh_info
      address = @machine.config.vm.networks.map { |kind, said| said[:ip] if kind == :private_network }.compact.first
      { host: address, port: 22, username: "root", private_key_path: ENV.fetch("RUNNING_MACHINES_KEY") }
    end

    def state
      Vagrant::MachineState.new(:running, "running", "running")
    end
  end

  class Plugin < Vagrant.plugin("2")
    name "running machines"
    provider(:running, box_optional: true, parallel: false) { Provider }
  end
end

Vagrant.configure("2") { |config| config.ssh.insert_key = false }
